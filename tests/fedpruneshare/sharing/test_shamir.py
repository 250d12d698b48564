"""Splitting into buffers, seeds that must differ, and secrecy of the very code that splits (docs/protocol.md §5.4)."""

from __future__ import annotations

import itertools
import tracemalloc

import numpy as np
import pytest
from reference import sharing_reference as reference

from fedpruneshare.errors import InconsistentSharesError, SharingError
from fedpruneshare.sharing import shamir as shamir_module
from fedpruneshare.sharing.field import CHUNK, F31, F61, Field, Words
from fedpruneshare.sharing.prg import Prg, Seed, fill_elements
from fedpruneshare.sharing.shamir import Accumulator, SharingScheme

SECRET = np.arange(70_000, 70_005, dtype="<u4")


def fresh(points: int) -> dict[int, Seed]:
    return {x: Seed.fresh() for x in range(1, points + 1)}


# --------------------------------------------------------------------------- secrecy, exhaustively, in GF(11)

TOY = Field("toy", 11, 4, "<u4", stream=10)
TOY_SCHEMES = [(2, 2, 1), (4, 2, 1), (3, 3, 2), (5, 3, 2), (5, 4, 3), (4, 3, 1), (5, 3, 1), (5, 4, 2), (4, 4, 1)]


def toy_shares(scheme: SharingScheme, monkeypatch: pytest.MonkeyPatch) -> tuple[Words, dict[int, Words]]:
    """(secrets of each polynomial [k − t, m], share of each point) for every choice of secrets and seed elements."""
    grid = np.array(list(itertools.product(range(TOY.p), repeat=scheme.k)), dtype="<u4").T.copy()

    class Scripted:
        def __init__(self, _prg: Prg, seed: Seed, _domain: bytes, _field: Field, _backend: str | None) -> None:
            self.left = grid[scheme.secrets - 1 + seed.reveal()[0]]

        def fill(self, out: Words) -> Words:
            out[:], self.left = self.left[: out.size], self.left[out.size :]
            return out

    monkeypatch.setattr(shamir_module, "ElementStream", Scripted)
    seeds = {x: Seed(bytes([x]) * 32) for x in range(1, scheme.t + 1)}
    secrets = grid[: scheme.secrets]
    full = scheme.split(secrets.ravel(), seeds, Prg.CHACHA20, b"")
    return secrets, {**{x: grid[scheme.secrets - 1 + x] for x in seeds}, **full}


@pytest.mark.parametrize(("n", "k", "t"), TOY_SCHEMES)
def test_t_shares_say_nothing_whatever_the_secrets(n: int, k: int, t: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """For all secrets every view of any t points comes up exactly as often: once, as the walk is a bijection."""
    secrets, shares = toy_shares(SharingScheme(n, k, t, TOY), monkeypatch)
    for points in itertools.combinations(shares, t):
        numbers = [shares[x] for x in points] + list(secrets)
        view = sum(row.astype(np.int64) * TOY.p**i for i, row in enumerate(numbers))
        assert np.bincount(view, minlength=TOY.p**k).tolist() == [1] * TOY.p**k, points


@pytest.mark.parametrize(("n", "k", "t"), [case for case in TOY_SCHEMES if case[2] < case[1] - 1])
def test_ramp_sharing_tells_part_above_t(n: int, k: int, t: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The price of shorter shares: with t + 1 of them not all secrets are possible any more."""
    secrets, shares = toy_shares(SharingScheme(n, k, t, TOY), monkeypatch)
    for points in itertools.combinations(shares, t + 1):
        view = sum(shares[x].astype(np.int64) * TOY.p**i for i, x in enumerate(points))
        possible = np.unique(secrets[:, view == 0], axis=1).shape[1]
        assert possible == TOY.p ** (k - t - 1) < TOY.p ** (k - t)


@pytest.mark.parametrize(("n", "k", "t"), TOY_SCHEMES)
def test_every_k_subset_opens_every_toy_secret(n: int, k: int, t: int, monkeypatch: pytest.MonkeyPatch) -> None:
    scheme = SharingScheme(n, k, t, TOY)
    secrets, shares = toy_shares(scheme, monkeypatch)
    for size in range(k, n + 1):
        for points in itertools.combinations(shares, size):
            assert np.array_equal(scheme.open({x: shares[x] for x in points}), secrets.ravel()), points


# --------------------------------------------------------------------------- all fields and schemes

SCHEMES = [(2, 2, 1), (3, 2, 1), (3, 3, 2), (5, 3, 2), (4, 3, 1), (7, 5, 2), (16, 9, 3), (16, 16, 15)]


def all_shares(scheme: SharingScheme, words: Words, prg: Prg = Prg.AES_256_CTR) -> dict[int, Words]:
    """The share of every point, seeds expanded."""
    seeds = fresh(scheme.t)
    size = scheme.elements(words.size)
    out = {x: np.empty(size, dtype=words.dtype) for x in range(1, scheme.n + 1)}
    for _ in scheme.split_chunks(words, seeds, (prg, b"d"), out):
        pass
    for x, seed in seeds.items():
        assert np.array_equal(out[x], fill_elements(prg, seed, b"d", np.empty_like(out[x]), scheme.field))
    return out


def draw(size: int, field: Field) -> Words:
    words = np.random.default_rng(size).integers(0, field.p, size, dtype=field.word_type)
    words[: min(size, 3)] = field.p - 1
    return words


@pytest.mark.parametrize("field", [F31, F61], ids=lambda field: field.name)
@pytest.mark.parametrize(("n", "k", "t"), SCHEMES)
def test_shares_are_those_of_the_polynomial(n: int, k: int, t: int, field: Field) -> None:
    """Against interpolation in plain integers, through the secrets and the seed shares."""
    scheme, words = SharingScheme(n, k, t, field), draw(7, field)
    shares, size = all_shares(scheme, words), scheme.elements(7)
    padded = np.concatenate([words, np.zeros(scheme.secrets * size - 7, dtype=words.dtype)]).reshape(-1, size)
    for element in range(size):
        known = {-j: int(padded[j, element]) for j in range(scheme.secrets)}
        known |= {x: int(shares[x][element]) for x in range(1, t + 1)}
        for x in scheme.full_points:
            assert int(shares[x][element]) == reference.interpolate(known, x, field.p)


@pytest.mark.parametrize("field", [F31, F61], ids=lambda field: field.name)
@pytest.mark.parametrize(("n", "k", "t"), [(3, 2, 1), (5, 3, 2), (4, 3, 1), (5, 4, 1)])
@pytest.mark.parametrize("size", [0, 1, 2, 3, 16_383, 16_384, 16_385, 32_767, 32_768, 32_769, 70_001])
def test_every_subset_opens_at_every_boundary(n: int, k: int, t: int, size: int, field: Field) -> None:
    scheme, words = SharingScheme(n, k, t, field), draw(size, field)
    shares = all_shares(scheme, words)
    subsets = [subset for m in range(k, n + 1) for subset in itertools.combinations(shares, m)]
    for points in subsets if size < 4 else [tuple(range(n - k + 1, n + 1)), tuple(range(1, n + 1))]:
        assert np.array_equal(scheme.open({x: shares[x] for x in points}, size), words), points


@pytest.mark.parametrize(("n", "k", "t"), SCHEMES)
def test_overhead_is_the_formula(n: int, k: int, t: int) -> None:
    """(n − t)/(k − t) elements travel per word, and t seeds."""
    scheme, words = SharingScheme(n, k, t), 5 * 4 * 3 * 7 * (k - t)
    bytes_in_all = sum(scheme.share_bytes(x, words) for x in range(1, n + 1))
    assert bytes_in_all == 4 * words * (n - t) // (k - t) + 32 * t


def test_ramp_of_four_three_one_costs_one_and_a_half() -> None:
    scheme = SharingScheme(4, 3, 1)
    assert sum(scheme.share_bytes(x, 1000) for x in (2, 3, 4)) == 1.5 * 4 * 1000


def test_padding_that_is_not_zero_is_refused() -> None:
    scheme = SharingScheme(4, 3, 1)
    shares = all_shares(scheme, draw(8, F31))
    with pytest.raises(SharingError, match="behind the last word"):
        scheme.open(shares, 7)
    with pytest.raises(SharingError, match="4 elements, expected 3"):
        scheme.open(shares, 6)


def test_vectors_that_follow_one_another_share_one_keystream() -> None:
    """As the segments of an upload do: the same as the elements of the whole stream, cut."""
    scheme, seeds = SharingScheme(4, 3, 1), fresh(1)
    streams = scheme.open_streams(seeds, (Prg.CHACHA20, b"d"))
    whole, start = fill_elements(Prg.CHACHA20, seeds[1], b"d", np.empty(10, dtype="<u4")), 0
    for size in (5, 1, 0, 7, 3):
        words = draw(size, F31)
        out = {x: np.empty(scheme.elements(size), dtype="<u4") for x in (1, 2, 3, 4)}
        scheme.split_next(words, streams, out)
        assert np.array_equal(scheme.open({x: out[x] for x in (2, 3, 4)}, size), words)
        end = start + scheme.elements(size)
        assert np.array_equal(out[1], whole[start:end])
        start = end


# --------------------------------------------------------------------------- check and locate


@pytest.mark.parametrize(("n", "k", "t"), [(3, 2, 1), (5, 3, 2), (6, 3, 1), (7, 3, 2), (9, 3, 2)])
def test_wrong_shares_are_located(n: int, k: int, t: int) -> None:
    """m shares locate (m − k)/2 wrong ones, whichever they are and wherever they differ."""
    scheme = SharingScheme(n, k, t)
    shares = all_shares(scheme, draw(50, F31))
    scheme.check(shares)
    assert scheme.locate(shares) == ()
    most = (n - k) // 2
    for wrong in itertools.combinations(range(1, n + 1), most):
        changed = dict(shares)
        for place, x in enumerate(wrong):
            changed[x] = shares[x].copy()
            changed[x][place : place + 3] = (changed[x][place : place + 3].astype(np.uint64) + x) % F31.p
        if wrong:
            with pytest.raises(InconsistentSharesError):
                scheme.check(changed)
            assert scheme.locate(changed) == wrong
            good = {x: share for x, share in changed.items() if x not in wrong}
            assert np.array_equal(scheme.open(good, 50), scheme.open(shares, 50))


@pytest.mark.parametrize(("n", "k", "count"), [(3, 2, 1), (4, 3, 1), (5, 3, 2), (7, 3, 3)])
def test_more_wrong_shares_than_can_be_located_are_not_guessed(n: int, k: int, count: int) -> None:
    scheme = SharingScheme(n, k, k - 1)
    shares = all_shares(scheme, draw(20, F31))
    for place, x in enumerate(range(1, count + 1)):
        shares[x] = (shares[x].astype(np.uint64) + 7 * (place + 1) ** 2).astype(np.uint64) % F31.p
        shares[x] = shares[x].astype("<u4")
    with pytest.raises(InconsistentSharesError, match=r"no .* of them explain it|disagree in"):
        scheme.locate(shares)


def test_k_shares_can_not_be_checked() -> None:
    scheme = SharingScheme(3, 2, 1)
    shares = all_shares(scheme, draw(5, F31))
    for call in (scheme.check, scheme.locate):
        with pytest.raises(SharingError, match="expected more than k = 2"):
            call({x: shares[x] for x in (1, 3)})


# --------------------------------------------------------------------------- seeds


@pytest.mark.parametrize(("n", "k", "same"), [(3, 3, (1, 2)), (5, 4, (1, 3)), (7, 5, (2, 4)), (7, 5, (1, 2, 3, 4))])
def test_a_seed_used_twice_is_refused(n: int, k: int, same: tuple[int, ...]) -> None:
    """In (3, 3) with one seed at both points the third share would be the plain update: 3·y − 3·y + s."""
    seeds = fresh(k - 1)
    for x in same[1:]:
        seeds[x] = Seed(seeds[same[0]].reveal())
    with pytest.raises(SharingError, match=f"points {same[0]} and {same[1]} have the same seed") as raised:
        SharingScheme(n, k, k - 1).split(SECRET, seeds, Prg.CHACHA20, b"d")
    assert seeds[same[0]].reveal().hex() not in str(raised.value)


# --------------------------------------------------------------------------- the caller's buffers


@pytest.mark.parametrize(("dtype", "size"), [("<u2", 5), ("<i8", 5), ("<u8", 5), ("<u4", 4), ("<u4", 6), ("<u4", 1)])
def test_a_buffer_that_does_not_fit_is_refused_before_a_word_is_written(dtype: str, size: int) -> None:
    out = {2: np.full(5, 9, dtype="<u4"), 3: np.full(size, 9, dtype=dtype)}
    with pytest.raises(SharingError, match="expected"):
        SharingScheme(3, 2, 1).split_chunks(SECRET, fresh(1), (Prg.CHACHA20, b"d"), out)
    assert all((buffer == 9).all() for buffer in out.values())


@pytest.mark.parametrize("points", [(), (2,), (2, 4), (2, 3, 4), (0, 2, 3)])
def test_buffers_are_for_all_full_points(points: tuple[int, ...]) -> None:
    out = {x: np.empty(5, dtype="<u4") for x in points}
    with pytest.raises(SharingError, match="expected 2 to 3"):
        SharingScheme(3, 2, 1).split_chunks(SECRET, fresh(1), (Prg.CHACHA20, b"d"), out)


def test_the_secrets_own_buffer_may_take_a_share() -> None:
    scheme, secret = SharingScheme(3, 2, 1), np.arange(CHUNK + 3, dtype="<u4")
    buffers = {2: secret.copy(), 3: np.empty_like(secret)}
    for _ in scheme.split_chunks(buffers[2], fresh(1), (Prg.AES_256_CTR, b"d"), buffers):
        pass
    assert scheme.open(buffers).tolist() == secret.tolist()


def test_extra_memory_does_not_grow_with_the_vector() -> None:
    """10^7 words, streamed: below 4 MiB on top of the secret."""
    scheme, words = SharingScheme(5, 3, 2), np.zeros(10**7, dtype="<u4")
    seeds, size = fresh(2), 0
    tracemalloc.start()
    try:
        for part, shares in scheme.stream(words, seeds, (Prg.AES_256_CTR, b"d")):
            size += part.stop - part.start
            assert sorted(shares) == [3, 4, 5]
        Accumulator(0).add_seed(Prg.AES_256_CTR, seeds[1], b"d")
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert size == words.size
    assert peak_bytes < 4 * 2**20


def test_a_stream_yields_what_split_returns() -> None:
    scheme, words, seeds = SharingScheme(4, 3, 1), draw(2 * 2 * CHUNK + 5, F31), fresh(1)
    whole = scheme.split(words, seeds, Prg.CHACHA20, b"d")
    for part, shares in scheme.stream(words, seeds, (Prg.CHACHA20, b"d")):
        assert all(np.array_equal(shares[x], whole[x][part]) for x in whole)


# --------------------------------------------------------------------------- opening and adding


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 7])
@pytest.mark.parametrize("prg", list(Prg))
def test_a_seed_adds_what_it_stands_for(size: int, prg: Prg) -> None:
    seed, direct, expanded = Seed.fresh(), Accumulator(size), Accumulator(size)
    for accumulator in (direct, expanded):
        accumulator.add(np.full(size, reference.P - 1, dtype="<u4"))
    direct.add_seed(prg, seed, b"d")
    expanded.add(fill_elements(prg, seed, b"d", np.empty(size, dtype="<u4")))
    assert np.array_equal(direct.export(), expanded.export())
    assert direct.count == expanded.count == 2


@pytest.mark.parametrize("place", [0, CHUNK - 1, CHUNK, 2 * CHUNK + 6])
def test_a_share_that_is_refused_late_leaves_the_sum_as_it_was(place: int) -> None:
    accumulator, share = Accumulator(2 * CHUNK + 7), draw(2 * CHUNK + 7, F31)
    accumulator.add(share)
    bad = share.copy()
    bad[place] = F31.p
    with pytest.raises(SharingError, match=f"word {place} is not below"):
        accumulator.add(bad)
    assert np.array_equal(accumulator.export(), share)
    assert accumulator.count == 1
