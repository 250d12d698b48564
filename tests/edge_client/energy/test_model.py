"""The model's formula against numbers worked out by hand."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_client.board.profiles import BoardProfile, LinkDefaults, PowerStates, boards, load_board
from edge_client.energy.model import HUANG_LTE, HUANG_WIFI, WATTS_ERROR, EnergyModel, Radio
from edge_client.energy.parts import Phase
from edge_client.energy.settings import EnergySettings, RadioSettings


def board(kind: str, up_mbit_s: float = 10.0, down_mbit_s: float = 20.0) -> BoardProfile:
    """Idle 2 W, busy 5 W, sending 3 W, receiving 2.5 W."""
    link = LinkDefaults(kind, up_mbit_s, down_mbit_s, 5.0)  # type: ignore[arg-type]
    return msgspec.structs.replace(load_board("raspberry-pi-4b"), power=PowerStates(2.0, 5.0, 3.0, 2.5), link=link)


def model(kind: str, own: RadioSettings | None = None) -> EnergyModel:
    profile = board(kind)
    return EnergyModel(profile, Radio.of(profile, own))


SECONDS = {
    Phase.RECEIVE: 1.0,
    Phase.TRAIN: 10.0,
    Phase.ENCODE: 0.5,
    Phase.SHARE: 0.5,
    Phase.SEND: 4.0,
    Phase.IDLE: 20.0,
}


def test_by_cable_every_phase_is_watts_times_seconds_and_bytes() -> None:
    found = model("ethernet").round_energy(SECONDS, 1_250_000, 2_500_000)
    # 1 W over idle at 1.25 MB/s is 0.8 µJ a byte: 1 J. 0.5 W at 2.5 MB/s is 0.2 µJ a byte: 0.5 J.
    expected = {"receive": 2 * 1 + 0.5, "train": 50.0, "encode": 2.5, "share": 2.5, "send": 2 * 4 + 1.0, "idle": 40.0}
    assert {str(phase): part.joules for phase, part in found.items()} == pytest.approx(expected)
    total_j = sum(part.joules or 0.0 for part in found.values())
    # E = P_idle·T + (P_busy - P_idle)·t_busy + bytes·e_radio
    assert total_j == pytest.approx(2 * 36 + 3 * 11 + 1.5)
    assert sum(part.idle_j or 0.0 for part in found.values()) == pytest.approx(2 * 36)
    assert found[Phase.TRAIN].uncertainty_j == pytest.approx(0.3 * 50)
    assert found[Phase.SEND].uncertainty_j == pytest.approx(((0.3 * 8) ** 2 + 0.5**2) ** 0.5)


def test_every_figure_says_that_it_is_modelled() -> None:
    for kind in ("ethernet", "wifi", "lte"):
        for part in model(kind).round_energy(SECONDS, 10, 10).values():
            assert part.is_modelled
            assert part.source.sensor == "model"
            assert "not measured" in part.source.resolution
            assert part.uncertainty_j is not None
            assert part.joules is not None
            assert part.uncertainty_j > 0
    assert "LTE of 2012 (Huang et al.)" in model("lte").source.covers


def test_the_radios_of_2012_are_as_published() -> None:
    """Per megabyte sent: Wi-Fi at 10 Mbit/s 2.4 J, LTE at 5 Mbit/s 5.6 J; a tail of LTE takes 12.3 J."""
    assert HUANG_WIFI.joules_per_byte(HUANG_WIFI.up_mw, 10.0) * 1e6 == pytest.approx(2.3704)
    assert HUANG_LTE.joules_per_byte(HUANG_LTE.up_mw, 5.0) * 1e6 == pytest.approx(5.5648)
    assert HUANG_LTE.joules_per_byte(HUANG_LTE.down_mw, 20.0) * 1e6 == pytest.approx(0.9312)
    assert HUANG_LTE.tail_s * HUANG_LTE.tail_w == pytest.approx(12.296)


def test_lte_pays_for_its_tails() -> None:
    found = model("lte").round_energy(SECONDS, 1_000_000, 1_000_000)
    # Up at 10 Mbit/s: 8e-9·(438 + 128.8) J a byte. What follows the last byte lasts its 11.6 s.
    assert found[Phase.SEND].joules == pytest.approx(2 * 4 + 4.5344 + 11.6 * 1.06)
    # Down at 20 Mbit/s. Eleven seconds later it is sending again: the tail is that much shorter.
    assert found[Phase.RECEIVE].joules == pytest.approx(2 * 1 + 0.9312 + 11.0 * 1.06)
    # What comes after a period has its own: the tail of a period ends with it.
    short = model("lte").round_energy({**SECONDS, Phase.IDLE: 0.5}, 1_000_000, 0)
    assert short[Phase.SEND].joules == pytest.approx(2 * 4 + 4.5344 + 0.5 * 1.06)
    between = model("lte").round_energy({Phase.IDLE: 5.0}, 0, 100)
    assert sum(part.joules or 0.0 for part in between.values()) == pytest.approx(2 * 5 + 5 * 1.06, abs=1e-3)
    idle = model("lte").round_energy(SECONDS, 0, 1_000_000)
    assert idle[Phase.RECEIVE].joules == pytest.approx(2 * 1 + 0.9312 + 11.6 * 1.06)
    assert idle[Phase.SEND].joules == pytest.approx(2 * 4)


def test_a_machine_that_stands_for_a_slower_board_is_charged_the_boards_time() -> None:
    profile = board("ethernet")
    plain = EnergyModel(profile, Radio.of(profile))
    found = EnergyModel(profile, Radio.of(profile), work_scale=10.0).round_energy(SECONDS, 1_250_000, 2_500_000)
    for phase, part in plain.round_energy(SECONDS, 1_250_000, 2_500_000).items():
        scale = 10 if phase in (Phase.TRAIN, Phase.ENCODE, Phase.SHARE) else 1
        assert found[phase].joules == pytest.approx(scale * (part.joules or 0.0))
        assert found[phase].idle_j == pytest.approx(scale * (part.idle_j or 0.0))
        assert found[phase].seconds == part.seconds
    assert found[Phase.TRAIN].uncertainty_j == pytest.approx(500 * (0.3**2 + 0.5**2) ** 0.5)
    assert "time of work x 10" in found[Phase.TRAIN].source.covers
    assert "time of work" not in plain.source.covers


def test_a_machine_held_to_the_boards_speed_needs_no_scale_but_is_no_less_doubted() -> None:
    profile = board("ethernet")
    plain = EnergyModel(profile, Radio.of(profile)).round_energy(SECONDS, 1_250_000, 2_500_000)
    slowed = EnergyModel(profile, Radio.of(profile), work_scale=10.0, work_is_slowed=True)
    found = slowed.round_energy(SECONDS, 1_250_000, 2_500_000)
    assert {phase: part.joules for phase, part in found.items()} == {p: part.joules for p, part in plain.items()}
    assert found[Phase.TRAIN].uncertainty_j == pytest.approx(50 * (0.3**2 + 0.5**2) ** 0.5)
    assert "time of work slowed down 10" in slowed.source.covers


def test_wifi_is_doubted_as_far_as_the_radios_of_2012() -> None:
    radio = Radio.of(board("wifi"))
    assert (radio.up_j_byte, radio.down_j_byte) == pytest.approx((0.8e-6, 0.2e-6))
    assert radio.up_error_j == pytest.approx(2.3704e-6 - 0.8e-6)
    assert radio.down_error_j == pytest.approx((137 + 133 / 20) * 8e-9 - 0.2e-6)


def test_own_coefficients_replace_all_others() -> None:
    own = RadioSettings(up_j_mb=3.0, down_j_mb=1.0, tail_w=0.5, tail_s=2.0)
    found = model("lte", own).round_energy({Phase.SEND: 1.0}, 2_000_000, 1_000_000)
    assert found[Phase.SEND].joules == pytest.approx(2.0 + 6.0)  # what follows is not known yet: no tail
    # Nothing lies between receiving and sending: no tail. No second of receiving was noted, its bytes still cost.
    assert found[Phase.RECEIVE].joules == pytest.approx(1.0)
    assert "radio by settings" in found[Phase.SEND].source.covers


def test_bytes_are_the_same_joules_however_quick_the_link() -> None:
    """A fleet on one machine sends at once what a radio would send for seconds."""
    quick, slow = (model("wifi").round_energy({Phase.SEND: s}, 1_250_000, 0)[Phase.SEND] for s in (0.001, 1.0))
    assert quick.joules == pytest.approx(0.002 + 1.0)
    assert slow.joules == pytest.approx(2.0 + 1.0)


@given(
    st.sampled_from(boards()),
    st.dictionaries(st.sampled_from(list(Phase)), st.floats(0, 1e4), min_size=1),
    st.integers(0, 10**9),
    st.integers(0, 10**9),
    st.sampled_from(list(Phase)),
)
def test_more_never_costs_less(
    profile: BoardProfile, seconds: dict[Phase, float], up: int, down: int, phase: Phase
) -> None:
    one = EnergyModel(profile, Radio.of(profile))

    def total_j(seconds: dict[Phase, float], up: int, down: int) -> float:
        return sum(part.joules or 0.0 for part in one.round_energy(seconds, up, down).values())

    plain = total_j(seconds, up, down)
    assert plain >= 0
    assert total_j({**seconds, phase: seconds.get(phase, 0.0) + 1.0}, up, down) > plain
    assert total_j(seconds, up + 1000, down) >= plain
    assert total_j(seconds, up, down + 1000) >= plain


def test_settings_refuse_a_budget_that_nothing_counts() -> None:
    assert msgspec.convert({}, EnergySettings) == EnergySettings()
    for budget in ({"budget_j": 1.0}, {"round_j": 1.0}, {"battery_wh": 1.0}):
        with pytest.raises(msgspec.ValidationError, match="meter is 'none' and there is a budget"):
            msgspec.convert({"meter": "none", **budget}, EnergySettings)
    assert msgspec.convert({"meter": "model", "work_scale": 10.0}, EnergySettings).work_scale == 10.0
    with pytest.raises(msgspec.ValidationError, match="work_scale is 10 with meter 'auto', expected 'model'"):
        msgspec.convert({"work_scale": 10.0}, EnergySettings)
    for wrong in ({"meter": "plug"}, {"every_s": 0}, {"budget_j": -1}, {"horizon_rounds": 0}, {"budget": 1}):
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(wrong, EnergySettings)


def test_the_page_names_every_setting_and_the_models_figures() -> None:
    page = (Path(__file__).parents[3] / "docs/energy.md").read_text("utf-8")
    for name in (*EnergySettings.__struct_fields__, *RadioSettings.__struct_fields__):
        assert f"`{name}`" in page, name
    for radio in (HUANG_WIFI, HUANG_LTE):
        assert f"({radio.up_mw:g} up, {radio.down_mw:g} down + {radio.base_mw:g} mW / Mbit/s)" in page
    assert f"a tail of {HUANG_LTE.tail_s:g} s × {HUANG_LTE.tail_w:g} W" in page
    assert f"| {WATTS_ERROR:.0%} of the watts".replace("%", " %") in page
