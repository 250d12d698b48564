"""What must hold for all inputs: field laws, unbiased elements, carries, secrecy (docs/protocol.md §5)."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import sharing_reference as reference

from fedpruneshare.errors import InconsistentSharesError, PlanError, SharingError
from fedpruneshare.sharing import prg as prg_module
from fedpruneshare.sharing.digits import DigitPacking
from fedpruneshare.sharing.field import (
    CHUNK,
    F31,
    F61,
    Field,
    check_canonical,
    from_bytes,
    modadd,
    modsub,
    sum_of_products,
    to_bytes,
)
from fedpruneshare.sharing.prg import ElementStream, Prg, Seed, fill_elements
from fedpruneshare.sharing.shamir import Accumulator, SharingScheme

P = F31.p
LENGTHS = (0, 1, 3, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 7)
edges = st.sampled_from([0, 1, 2, P // 2, P - 2, P - 1]) | st.integers(0, P - 1)


def array(values: list[int]) -> np.ndarray:
    return np.array(values, dtype="<u4")


def random_words(length: int, seed: int = 0) -> np.ndarray:
    words = np.random.default_rng(seed).integers(0, P, length).astype("<u4")
    words[: min(length, 2)] = P - 1
    return words


# --------------------------------------------------------------------------- field


@given(st.lists(st.tuples(edges, edges), max_size=40))
def test_add_and_subtract_are_those_of_integers(pairs: list[tuple[int, int]]) -> None:
    a, b = array([x for x, _ in pairs]), array([y for _, y in pairs])
    assert modadd(a, b, np.empty_like(a)).tolist() == [(x + y) % P for x, y in pairs]
    assert modsub(a, b, np.empty_like(a)).tolist() == [(x - y) % P for x, y in pairs]


@pytest.mark.parametrize("length", LENGTHS)
def test_in_place_and_across_chunks(length: int) -> None:
    a, b = random_words(length, 1), random_words(length, 2)
    expected = (a.astype(np.uint64) + b) % P
    kept = b.copy()
    assert modadd(a, b, out=a) is a
    assert np.array_equal(a, expected)
    modsub(a, b, out=a)
    assert np.array_equal(a, random_words(length, 1))
    assert np.array_equal(b, kept)


@pytest.mark.parametrize("length", LENGTHS)
def test_one_array_as_both_operands_and_output(length: int) -> None:
    a = random_words(length, 3)
    doubled = [2 * value % P for value in a.tolist()]
    assert modadd(a, a, out=a).tolist() == doubled
    assert not modsub(a, a, out=a).any()


@pytest.mark.parametrize("length", LENGTHS)
def test_every_operation_against_integers(length: int) -> None:
    a, b = random_words(length, 6), random_words(length, 7)
    left, right = a.tolist(), b.tolist()
    assert modadd(a, b, np.empty_like(a)).tolist() == [(x + y) % P for x, y in zip(left, right, strict=True)]
    assert modsub(a, b, np.empty_like(a)).tolist() == [(x - y) % P for x, y in zip(left, right, strict=True)]
    assert modsub(b.copy(), a, np.empty_like(a)).tolist() == [(y - x) % P for x, y in zip(left, right, strict=True)]
    factors = [P - 1, 123_456_789, 2, P - 2]
    rows = [a, b, a, b]
    expected = [((P - 1 + 2) * x + (123_456_789 + P - 2) * y) % P for x, y in zip(left, right, strict=True)]
    assert sum_of_products(factors, rows, out=a).tolist() == expected  # `out` is the first operand
    assert bytes(to_bytes(b)) == b"".join(value.to_bytes(4, "little") for value in right)


@given(st.lists(edges, min_size=1, max_size=9), st.integers(0, 5), st.randoms(use_true_random=False))
def test_sum_of_products(factors: list[int], length: int, rng: object) -> None:
    rows = [random_words(length, index) for index in range(len(factors))]
    expected = [sum(f * int(row[i]) for f, row in zip(factors, rows, strict=True)) % P for i in range(length)]
    assert sum_of_products(factors, rows, np.empty(length, dtype="<u4")).tolist() == expected


def test_sum_of_largest_products_across_chunks() -> None:
    rows = [np.full(CHUNK + 3, P - 1, dtype="<u4")] * 8
    assert set(sum_of_products([P - 1] * 8, rows, np.empty(CHUNK + 3, dtype="<u4")).tolist()) == {8}


@pytest.mark.parametrize("dtype", ["<u8", "<i4", ">u4", "<f4"])
def test_another_dtype_is_refused(dtype: str) -> None:
    with pytest.raises(SharingError, match="expected one axis"):
        check_canonical(np.zeros(3, dtype=dtype))


def test_bytes_there_and_back() -> None:
    words = random_words(100)
    assert np.array_equal(from_bytes(bytes(to_bytes(words)), 100), words)
    assert bytes(to_bytes(array([1, 2**30]))) == b"\x01\0\0\0\0\0\0\x40"


# --------------------------------------------------------------------------- keystream


@given(st.lists(st.integers(0, CHUNK), max_size=5), st.sampled_from(list(Prg)))
def test_the_cuts_do_not_change_the_elements(sizes: list[int], prg: Prg) -> None:
    seed = Seed(bytes(range(32)))
    whole = fill_elements(prg, seed, b"d", np.empty(sum(sizes), dtype="<u4"))
    stream = ElementStream(prg, seed, b"d")
    pieces = [stream.fill(np.empty(size, dtype="<u4")) for size in sizes]
    assert np.array_equal(np.concatenate([np.empty(0, dtype="<u4"), *pieces]), whole)


def test_rejected_words_are_replaced_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a keystream that yields p often, as the true one does once in 2^31 words."""
    streams = {0: [P, 5, P, P, 7, 0, P], 1: [11, P, 12, P, P, 13, 14, 15]}
    for sizes in ([7], [1] * 7, [3, 4], [2, 0, 5]):

        class Scripted:
            def __init__(self, _source: object, stream: int, _field: Field, _backend: str) -> None:
                self.left = list(streams[stream])

            def fill(self, out: np.ndarray) -> None:
                out[:] = [self.left.pop(0) for _ in range(out.size)]

        monkeypatch.setattr(prg_module, "_Keystream", Scripted)
        stream = ElementStream(Prg.CHACHA20, Seed(bytes(32)), b"")
        got = np.concatenate([stream.fill(np.empty(size, dtype="<u4")) for size in sizes]).tolist()
        assert got == reference.replace_rejected(streams[0], iter(streams[1])) == [11, 5, 12, 13, 7, 0, 14]


@given(
    st.sets(st.integers(0, 2 * CHUNK + 9), max_size=12),
    st.lists(st.sampled_from([0, 1, 5, CHUNK - 1, CHUNK, CHUNK + 1]), max_size=6),
    st.lists(st.booleans(), max_size=12),
)
def test_rejection_does_not_depend_on_chunks_or_cuts(
    places: set[int], sizes: list[int], spare_rejected: list[bool]
) -> None:
    """Cipher bytes with p and 2^32 − 1 (p under the top bit) put in, also at the edges of chunks."""
    count = 2 * CHUNK + 10
    main = random_words(count, 5).astype("<u4") | np.uint32(1 << 31)
    main[sorted({*places, 0, CHUNK - 1, CHUNK, count - 1})] = 2**32 - 1
    main[sorted(places)[::2]] = P
    spare = np.arange(1000, 1040, dtype="<u4")
    spare[: len(spare_rejected)][np.array(spare_rejected, dtype=bool)] = P
    cuts = np.minimum(np.cumsum([0, *sizes, count]), count)

    def scripted(_prg: Prg, _key: bytes, _backend: str) -> object:
        left = [bytearray((main if not made else spare).tobytes())]
        made.append(True)

        def write(output: memoryview) -> None:
            output[:] = left[0][: len(output)]
            del left[0][: len(output)]

        return write

    made: list[bool] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prg_module, "_cipher", scripted)
        stream = ElementStream(Prg.CHACHA20, Seed(bytes(32)), b"")
        got = [stream.fill(np.empty(end - start, dtype="<u4")) for start, end in itertools.pairwise(cuts)]
    candidates = (main & P).tolist()
    assert np.concatenate(got).tolist() == reference.replace_rejected(candidates, iter(spare.tolist()))


def test_the_spare_stream_is_another_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replacements are the true words of stream 1, under its own key."""
    seed, domain = Seed(bytes(range(32))), b"spare"
    fill = prg_module._Keystream.fill
    monkeypatch.setattr(prg_module._Keystream, "fill", lambda own, out: out.fill(P) if out.size > 1 else fill(own, out))
    for prg in Prg:
        got = ElementStream(prg, seed, domain).fill(np.empty(40, dtype="<u4")).tolist()
        assert got == reference.words_of(reference.keystream(prg.value, seed.reveal(), domain, 1, 160))


def test_seed_domain_and_algorithm_all_matter() -> None:
    def first(prg: Prg, seed: int, domain: bytes) -> tuple[int, ...]:
        return tuple(fill_elements(prg, Seed(bytes([seed]) * 32), domain, np.empty(4, dtype="<u4")).tolist())

    variants = [first(prg, seed, domain) for prg in Prg for seed in (0, 1) for domain in (b"", b"a", b"b")]
    assert len(set(variants)) == len(variants)


@pytest.mark.parametrize("field", [F31, F61], ids=lambda field: field.name)
@pytest.mark.parametrize("prg", list(Prg))
def test_ten_million_elements_are_uniform(prg: Prg, field: Field) -> None:
    """Chi-square over 64 equal ranges: 63 degrees of freedom, 120 is beyond the 99.998th percentile. Fixed seed.

    And over the residues mod 251, where a generator that takes `% p` of a byte shows.
    """
    stream, count, block = ElementStream(prg, Seed(b"\7" * 32), b"uniform", field), 10_000_000, 1_000_000
    ranges, residues = np.zeros(64), np.zeros(251)
    for _ in range(count // block):
        values = stream.fill(np.empty(block, dtype=field.word_type))
        ranges += np.bincount((values >> np.uint64(field.bits - 6)).astype(np.int64), minlength=64)
        residues += np.bincount((values % 251).astype(np.int64), minlength=251)
    for observed, limit in ((ranges, 120), (residues, 350)):
        expected = count / observed.size
        assert ((observed - expected) ** 2 / expected).sum() < limit


def test_a_seed_shows_nothing() -> None:
    seed = Seed.fresh()
    assert seed.reveal().hex() not in f"{seed!r} {seed!s}"
    assert Seed.fresh().reveal() != seed.reveal()


# --------------------------------------------------------------------------- digits


@given(st.integers(1, 16), st.integers(1, 5000), st.integers(0, 30))
def test_the_largest_sum_fits_and_one_more_digit_would_not(bits: int, devices: int, count: int) -> None:
    radix = devices * (2**bits - 1) + 1
    if radix - 1 >= P:
        return
    packing = DigitPacking(bits, devices)
    assert radix**packing.digits - 1 < P <= radix ** (packing.digits + 1) - 1
    top = packing.pack(array([2**bits - 1] * count))
    largest = top.astype(np.uint64) * devices
    assert largest.max(initial=0) < P
    assert packing.unpack(largest.astype("<u4"), count).tolist() == [devices * (2**bits - 1)] * count


@given(st.data())
def test_sums_of_packed_words_are_packed_sums(data: st.DataObject) -> None:
    bits, devices = data.draw(st.integers(1, 8)), data.draw(st.integers(1, 6))
    count = data.draw(st.integers(0, 20))
    packing = DigitPacking(bits, devices)
    column = st.lists(st.integers(0, 2**bits - 1), min_size=count, max_size=count)
    each = data.draw(st.lists(column, min_size=1, max_size=devices))
    total = np.zeros(packing.words(count), dtype="<u4")
    for values in each:
        packed = packing.pack(np.array(values, dtype=data.draw(st.sampled_from(["u1", "<u2", "<u4", "<u8"]))))
        assert packed.tolist() == reference.pack(values, bits, devices)
        modadd(total, packed, out=total)
    assert packing.unpack(total, count).tolist() == [sum(column) for column in zip(*each, strict=True)]


@pytest.mark.parametrize(("bits", "devices"), [(30, 2), (1, P - 1), (5, (P - 1) // 31)])
def test_a_radix_of_p_is_the_last_that_fits(bits: int, devices: int) -> None:
    """The largest sum is p − 1, the largest element; with one device more it would be 0 again."""
    packing = DigitPacking(bits, devices)
    assert (packing.radix, packing.digits) == (P, 1)
    assert packing.unpack(array([P - 1]), 1).tolist() == [P - 1]
    with pytest.raises(PlanError, match="reach the modulus"):
        DigitPacking(bits, devices + 1)


@pytest.mark.parametrize(("bits", "devices"), [(4, 10), (8, 128), (2, 341), (1, 127), (16, 24)])
def test_the_radix_is_tight(bits: int, devices: int) -> None:
    """All devices at the top fill a digit to R − 1; one more anywhere would turn up in the next digit."""
    packing = DigitPacking(bits, devices)
    full = devices * packing.pack(array([2**bits - 1] * packing.digits)).astype("<u8")
    assert full.tolist() == [packing.radix**packing.digits - 1]
    assert packing.unpack(full.astype("<u4"), packing.digits).tolist() == [packing.radix - 1] * packing.digits
    lowest = array([packing.radix])
    if packing.digits > 1:
        assert packing.unpack(lowest, 2).tolist() == [0, 1]
    else:
        with pytest.raises(SharingError, match="more than its digits"):
            packing.unpack(lowest, 1)


# --------------------------------------------------------------------------- Shamir


@given(st.data())
def test_more_shares_than_needed_find_any_altered_word(data: st.DataObject) -> None:
    n = data.draw(st.integers(3, 7))
    k = data.draw(st.integers(2, n - 1))
    scheme = SharingScheme(n, k, k - 1)
    secret = array(data.draw(st.lists(edges, min_size=1, max_size=5)))
    seeds = {x: Seed(bytes([x]) * 32) for x in range(1, k)}
    shares = scheme.split(secret, seeds, Prg.AES_256_CTR, b"d")
    shares |= {x: fill_elements(Prg.AES_256_CTR, seed, b"d", np.empty_like(secret)) for x, seed in seeds.items()}
    given_points = data.draw(st.sets(st.integers(1, n), min_size=k + 1))
    used = {x: shares[x] for x in given_points}
    assert scheme.open(used).tolist() == secret.tolist()
    x, word = data.draw(st.sampled_from(sorted(used))), data.draw(st.integers(0, secret.size - 1))
    altered = used[x].copy()
    altered[word] = (int(altered[word]) + data.draw(st.integers(1, P - 1))) % P
    with pytest.raises(InconsistentSharesError) as raised:
        scheme.open({**used, x: altered})
    numbers = [int(number) for number in re.findall(r"\d+", str(raised.value))]
    assert max(numbers) < 10  # points and counts, and no word of a share


@given(st.data())
def test_any_k_shares_of_a_sum_open_the_sum(data: st.DataObject) -> None:
    n = data.draw(st.integers(2, 9))
    k = data.draw(st.integers(2, n))
    length, dealers = data.draw(st.integers(0, 6)), data.draw(st.integers(1, 4))
    scheme, total = SharingScheme(n, k, k - 1), np.zeros(length, dtype=np.uint64)
    sums = {x: Accumulator(length) for x in range(1, n + 1)}
    for _ in range(dealers):
        secret = array([data.draw(edges) for _ in range(length)])
        total += secret
        seeds = {x: Seed.fresh() for x in range(1, k)}
        shares = scheme.split(secret, seeds, Prg.CHACHA20, b"d")
        for x, accumulator in sums.items():
            if x < k:
                accumulator.add_seed(Prg.CHACHA20, seeds[x], b"d")
            else:
                accumulator.add(shares[x])
    subset = data.draw(st.sets(st.integers(1, n), min_size=k))
    assert scheme.open({x: sums[x].export() for x in subset}).tolist() == (total % P).tolist()


def test_long_vectors_in_the_callers_buffers() -> None:
    scheme, secret = SharingScheme(5, 3, 2), random_words(2 * CHUNK + 7)
    seeds = {x: Seed.fresh() for x in (1, 2)}
    out = {x: np.empty(secret.size, dtype="<u4") for x in (3, 4, 5)}
    parts = list(scheme.split_chunks(secret, seeds, (Prg.AES_256_CTR, b"d"), out))
    assert [part.stop - part.start for part in parts] == [CHUNK, CHUNK, 7]
    assert np.array_equal(scheme.open(out), secret)
    whole = scheme.split(secret, seeds, Prg.AES_256_CTR, b"d")
    assert all(np.array_equal(whole[x], out[x]) for x in out)


@given(st.lists(st.lists(edges, min_size=3, max_size=3), min_size=1, max_size=6))
def test_what_was_added_can_be_taken_out_again(rows: list[list[int]]) -> None:
    accumulator = Accumulator(3)
    for row in rows:
        accumulator.add(array(row))
    for row in rows[1:]:
        accumulator.remove(array(row))
    assert accumulator.export().tolist() == rows[0]
    assert accumulator.count == 1


def test_an_exported_sum_stays_as_it_was() -> None:
    accumulator = Accumulator(2)
    accumulator.add(array([1, P - 1]))
    exported = accumulator.export()
    accumulator.add(array([5, 5]))
    assert exported.tolist() == [1, P - 1]
    exported[:] = 0
    assert accumulator.export().tolist() == [6, 4]


def test_taking_out_of_nothing_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(RuntimeError):
        Accumulator(1).remove(array([0]))
