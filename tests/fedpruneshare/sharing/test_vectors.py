"""The sharing code against vectors of a slow integer reference, good and bad (docs/protocol.md §5)."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reference import sharing_reference as reference

from fedpruneshare import errors
from fedpruneshare.messages import Coding
from fedpruneshare.sharing.dealer_check import challenge_rows, combine, judge
from fedpruneshare.sharing.digits import DigitPacking, shift
from fedpruneshare.sharing.field import F31, F61, FIELDS, Field, from_bytes
from fedpruneshare.sharing.prg import BACKENDS, ElementStream, Prg, Seed, fill_elements
from fedpruneshare.sharing.shamir import Accumulator, SharingScheme
from fedpruneshare.words import SegmentWords, WordLayout

VECTORS = Path(__file__).parents[2] / "vectors"
GOOD: dict[str, Any] = json.loads((VECTORS / "sharing.json").read_text())
BAD: list[dict[str, Any]] = json.loads((VECTORS / "sharing_bad.json").read_text())


#: What a release has published as a vector holds for ever: new cases go into new files.
FOR_EVER = {"sharing.json": "510fb1a67716608c", "sharing_bad.json": "bbf908eecf89b886"}


def words(values: list[int], dtype: str = "<u4") -> np.ndarray:
    return np.array(values, dtype=dtype)


def as_words(values: list[int], field: str) -> np.ndarray:
    return np.array(values, dtype=FIELDS[field].word_type)


def layout(coding: dict[str, int]) -> WordLayout:
    return WordLayout(Coding(weight_clips=(1.0,), vector_clips=(1.0,), **coding))


def test_the_vectors_are_those_of_the_reference(tmp_path: Path) -> None:
    reference.write(tmp_path)
    for name in ("sharing.json", "sharing_bad.json"):
        assert (tmp_path / name).read_bytes() == (VECTORS / name).read_bytes(), name
        assert hashlib.sha256((VECTORS / name).read_bytes()).hexdigest().startswith(FOR_EVER[name]), name
    assert sum(len(cases) for cases in GOOD.values()) >= 40
    assert len(BAD) >= 40
    assert {case["call"] for case in BAD} == set(CALLS)


@pytest.mark.parametrize("case", GOOD["keystream"], ids=lambda case: f"{case['algorithm']} {len(case['elements'])}")
def test_keystream(case: dict[str, Any]) -> None:
    out = np.empty(len(case["elements"]), dtype="<u4")
    seed, domain = Seed(bytes.fromhex(case["seed"])), bytes.fromhex(case["domain"])
    fill_elements(Prg(case["algorithm"]), seed, domain, out)
    assert out.tolist() == case["elements"]


@pytest.mark.parametrize("case", GOOD["digits"], ids=lambda case: f"{case['bits']} bits x {case['devices']}")
def test_digits(case: dict[str, Any]) -> None:
    packing = DigitPacking(case["bits"], case["devices"])
    assert packing.digits == case["digits"]
    for values, packed in zip(case["values"], case["packed"], strict=True):
        assert packing.pack(words(values)).tolist() == packed
    count = len(case["unpacked"])
    assert packing.unpack(words(case["sum"]), count).tolist() == case["unpacked"]
    top = case["devices"] * (2 ** case["bits"] - 1)
    assert max(case["most"], default=0) < reference.P
    assert packing.unpack(words(case["most"]), count).tolist() == [top] * count


@pytest.mark.parametrize("case", GOOD["sharing"], ids=lambda c: f"({c['n']},{c['k']}) {c['algorithm']} {len(c['sum'])}")
def test_sharing(case: dict[str, Any]) -> None:
    scheme = SharingScheme(case["n"], case["k"], case["k"] - 1)
    prg, domain = Prg(case["algorithm"]), bytes.fromhex(case["domain"])
    sums = {x: Accumulator(len(case["sum"])) for x in range(1, scheme.n + 1)}
    for dealer in case["dealers"]:
        seeds = {int(x): Seed(bytes.fromhex(seed)) for x, seed in dealer["seeds"].items()}
        full = scheme.split(words(dealer["secret"]), seeds, prg, domain)
        assert {str(x): share.tolist() for x, share in full.items()} == {
            x: share for x, share in dealer["shares"].items() if x not in dealer["seeds"]
        }
        for x, accumulator in sums.items():
            if scheme.is_seed_point(x):
                accumulator.add_seed(prg, seeds[x], domain)
            else:
                accumulator.add(full[x])
    exported = {x: accumulator.export() for x, accumulator in sums.items()}
    assert {str(x): share.tolist() for x, share in exported.items()} == case["sums"]
    for size in range(scheme.k, scheme.n + 1):
        for subset in itertools.combinations(exported, size):
            assert scheme.open({x: exported[x] for x in subset}).tolist() == case["sum"]


@pytest.mark.parametrize("case", GOOD["segments"], ids=lambda case: "-".join(map(str, case["coding"].values())))
def test_segments(case: dict[str, Any]) -> None:
    own = layout(case["coding"])
    vectors, values = len(case["vectors"]), len(case["values"])
    for upload, expected in zip(case["uploads"], case["words"], strict=True):
        packed = own.pack(SegmentWords(upload["weight"], words(upload["vectors"]), words(upload["values"])))
        assert packed.dtype == np.dtype("<u4")
        assert packed.tolist() == expected
    assert own.words(vectors, values) == len(case["sum"])
    total = own.unpack(words(case["sum"]), vectors, values)
    assert total.weight == case["weight"]
    assert total.vectors.tolist() == case["vectors"]
    assert total.values.tolist() == case["values"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", GOOD["keystream"] + GOOD["keystream_f61"], ids=lambda case: case["seed"][:6])
def test_every_library_gives_the_same_elements(case: dict[str, Any], backend: str) -> None:
    field = F31 if case in GOOD["keystream"] else F61
    stream = ElementStream(
        Prg(case["algorithm"]), Seed(bytes.fromhex(case["seed"])), bytes.fromhex(case["domain"]), field, backend
    )
    assert stream.fill(np.empty(len(case["elements"]), dtype=field.word_type)).tolist() == case["elements"]


@pytest.mark.parametrize("case", GOOD["packing"], ids=lambda c: f"{c['bits']} bits x {c['devices']} in {c['field']}")
def test_packing(case: dict[str, Any]) -> None:
    field, bits = FIELDS[case["field"]], case["bits"]
    packing = DigitPacking(bits, case["devices"], case["weight"], case["is_power_of_two"], field)
    assert (packing.radix, packing.digits, packing.largest_sum) == (case["radix"], case["digits"], case["largest"])
    packed = packing.pack(words(case["values"]))
    assert packed.dtype == field.word_type
    assert packed.tolist() == case["packed"]
    count = len(case["values"])
    assert packing.unpack(packed, count).tolist() == case["values"]
    assert packing.unpack(as_words(case["most"], case["field"]), count).tolist() == [case["largest"]] * count


@pytest.mark.parametrize("case", GOOD["schemes"], ids=lambda c: f"{c['scheme']} {c['field']} {c['algorithm']}")
def test_schemes(case: dict[str, Any]) -> None:
    """Ramp sharing and the second field: split, sums of two dealers, every subset opens."""
    field, count = FIELDS[case["field"]], len(case["sum"])
    scheme = SharingScheme(*case["scheme"], field)
    prg, domain = Prg(case["algorithm"]), bytes.fromhex(case["domain"])
    sums = {x: Accumulator(scheme.elements(count), field) for x in range(1, scheme.n + 1)}
    for dealer in case["dealers"]:
        seeds = {int(x): Seed(bytes.fromhex(seed)) for x, seed in dealer["seeds"].items()}
        full = scheme.split(as_words(dealer["words"], case["field"]), seeds, prg, domain)
        assert {str(x): share.tolist() for x, share in full.items()} == {
            x: share for x, share in dealer["shares"].items() if x not in dealer["seeds"]
        }
        for x, seed in seeds.items():
            sums[x].add_seed(prg, seed, domain)
        for x, share in full.items():
            sums[x].add(share)
    exported = {x: accumulator.export() for x, accumulator in sums.items()}
    for size in range(scheme.k, scheme.n + 1):
        for subset in itertools.combinations(exported, size):
            assert scheme.open({x: exported[x] for x in subset}, count).tolist() == case["sum"]


@pytest.mark.parametrize("case", GOOD["dealer_check"], ids=lambda c: f"{c['scheme']} {c['field']} x {c['checks']}")
def test_dealer_check(case: dict[str, Any]) -> None:
    field = FIELDS[case["field"]]
    scheme = SharingScheme(*case["scheme"], field)
    shares = {int(x): as_words(share, case["field"]) for x, share in case["shares"].items()}
    rows = challenge_rows(bytes.fromhex(case["challenge"]), case["checks"], shares[1].size - case["checks"], field)
    answers = {x: combine(share, rows, field) for x, share in shares.items()}
    assert {str(x): z for x, z in answers.items()} == case["answers"]
    honest = {x: {"device": as_words(z, case["field"]), "a": as_words([0], "F31"), "b": as_words([0], "F31")}
              for x, z in answers.items()}  # fmt: skip
    if field is F31:
        assert judge(scheme, honest).dealers == (() if case["is_consistent"] else ("device",))


def bad_scheme(case: dict[str, Any]) -> Any:
    return SharingScheme(case["n"], case["k"], case["t"])


def bad_packing(case: dict[str, Any]) -> Any:
    return DigitPacking(case["bits"], case["devices"])


def bad_pack(case: dict[str, Any]) -> Any:
    return DigitPacking(case["bits"], case["devices"]).pack(words(case["values"], case.get("dtype", "<u4")))


def bad_unpack(case: dict[str, Any]) -> Any:
    return DigitPacking(case["bits"], case["devices"]).unpack(
        words(case["words"], case.get("dtype", "<u4")), case["count"]
    )


def bad_add(case: dict[str, Any]) -> Any:
    accumulator = Accumulator(case["length"])
    try:
        accumulator.add(words(case["words"], case.get("dtype", "<u4")))
    finally:
        assert accumulator.count == 0
        assert not accumulator.export().any()


def bad_from_bytes(case: dict[str, Any]) -> Any:
    return from_bytes(bytes.fromhex(case["data"]), case["count"])


def bad_seed(case: dict[str, Any]) -> Any:
    return Seed(bytes.fromhex(case["data"]))


def bad_split(case: dict[str, Any]) -> Any:
    seeds = {x: Seed(bytes(32)) for x in case["seed_points"]}
    secret = words(case["words"], case.get("dtype", "<u4"))
    return SharingScheme(case["n"], case["k"], case["k"] - 1).split(secret, seeds, Prg.CHACHA20, b"")


def bad_open(case: dict[str, Any]) -> Any:
    shares = {int(x): words(share, case.get("dtype", "<u4")) for x, share in case["shares"].items()}
    return SharingScheme(case["n"], case["k"], case["k"] - 1).open(shares)


def bad_layout(case: dict[str, Any]) -> Any:
    return layout(case["coding"])


def bad_segment(case: dict[str, Any]) -> Any:
    upload = case["upload"]
    return layout(case["coding"]).pack(
        SegmentWords(upload["weight"], words(upload["vectors"]), words(upload["values"]))
    )


def bad_segment_sum(case: dict[str, Any]) -> Any:
    return layout(case["coding"]).unpack(words(case["words"]), case["vectors"], case["values"])


def bad_open_ramp(case: dict[str, Any]) -> Any:
    shares = {int(x): words(share) for x, share in case["shares"].items()}
    return SharingScheme(*case["scheme"]).open(shares, case["words"])


def bad_add_to(field: Field) -> Callable[[dict[str, Any]], Any]:
    def add(case: dict[str, Any]) -> Any:
        accumulator = Accumulator(len(case["words"]), field)
        try:
            accumulator.add(words(case["words"], case["dtype"]))
        finally:
            assert not accumulator.export().any()

    return add


def bad_split_f61(case: dict[str, Any]) -> Any:
    return SharingScheme(3, 2, 1, F61).split(
        words(case["words"], case["dtype"]), {1: Seed(bytes(32))}, Prg.CHACHA20, b""
    )


def bad_from_bytes_f61(case: dict[str, Any]) -> Any:
    return from_bytes(bytes.fromhex(case["data"]), case["count"], F61)


def bad_packing_of(case: dict[str, Any]) -> Any:
    return DigitPacking(case["bits"], case["devices"], case["weight"], case["is_power_of_two"], FIELDS[case["field"]])


def bad_unpack_two(case: dict[str, Any]) -> Any:
    return DigitPacking(case["bits"], case["devices"], is_power_of_two=True).unpack(words(case["words"]), case["count"])


def bad_shift(case: dict[str, Any]) -> Any:
    return shift(np.array(case["values"], dtype=np.int32), case["bits"])


def bad_judge(case: dict[str, Any]) -> Any:
    given = {int(x): {f"device-{i}": words([z]) for i, z in enumerate(values)} for x, values in case["answers"].items()}
    return judge(SharingScheme(5, 3, 2), given)


def bad_locate(case: dict[str, Any]) -> Any:
    return SharingScheme(5, 3, 2).locate({int(x): words(share) for x, share in case["shares"].items()})


def bad_check(case: dict[str, Any]) -> Any:
    return SharingScheme(5, 3, 2).check({int(x): words(share) for x, share in case["shares"].items()})


CALLS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "scheme": bad_scheme, "packing": bad_packing, "pack": bad_pack, "unpack": bad_unpack, "add": bad_add,
    "from_bytes": bad_from_bytes, "seed": bad_seed, "split": bad_split, "open": bad_open,
    "layout": bad_layout, "segment": bad_segment, "segment_sum": bad_segment_sum, "open_ramp": bad_open_ramp,
    "add_f31": bad_add_to(F31), "add_f61": bad_add_to(F61), "split_f61": bad_split_f61,
    "from_bytes_f61": bad_from_bytes_f61, "packing_of": bad_packing_of, "unpack_two": bad_unpack_two,
    "shift": bad_shift, "judge": bad_judge, "locate": bad_locate, "check": bad_check,
}  # fmt: skip


@pytest.mark.parametrize("case", BAD, ids=lambda case: f"{case['call']}: {case['why']}")
def test_bad(case: dict[str, Any]) -> None:
    with pytest.raises(errors.FedPruneShareError) as raised:
        CALLS[case["call"]](case)
    assert type(raised.value).__name__ == case["error"]
