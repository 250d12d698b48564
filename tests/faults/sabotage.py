"""Every defence by name, how to take it out, and the tests that must then fail (tests/faults/test_sabotage.py).

Ranks number the attacks that the defences are against, the one that is most worth defending against first; 0 is beyond
that list. A defence is taken out at a seam: a rule is silenced, a check answers yes, a limit is lifted. Where it is a
function, it is replaced in every module that imported it.
"""

from __future__ import annotations

import importlib
import os
import ssl
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

Replacement = Callable[[Any], Any]
"""The original -> what stands in its place."""

OFF: Replacement = lambda _: lambda *_, **__: None  # noqa: E731
"""A rule that never raises."""


def gives(value: Any) -> Replacement:
    """A function that always answers the same."""
    return lambda _: lambda *_, **__: value


def to(value: Any) -> Replacement:
    """Another value in place of a constant."""
    return lambda _: value


@dataclass(frozen=True)
class Sabotage:
    """One defence of a rank, how it is taken out ((module:name, replacement) …), and the tests that notice.

    `says`: what a test must say that would notice much else, a pattern.
    """

    rank: int
    name: str
    cuts: tuple[tuple[str, Replacement], ...]
    tests: tuple[str, ...]
    says: str = ""

    def apply(self) -> None:
        """Take the defence out of this process, for good."""
        for target, replacement in self.cuts:
            module_name, _, path = target.partition(":")
            owner: Any = importlib.import_module(module_name)
            *outer, name = path.split(".")
            for part in outer:
                owner = getattr(owner, part)
            original = owner.__dict__[name]
            plain = original.__func__ if isinstance(original, (classmethod, staticmethod)) else original
            made = replacement(plain)
            if isinstance(original, (classmethod, staticmethod)):
                made = type(original)(made)
            if isinstance(original, property):
                made = property(made)
            setattr(owner, name, made)
            if not outer and callable(original) and getattr(original, "__module__", "") == module_name:
                _everywhere(original, made)


def _everywhere(original: Any, made: Any) -> None:
    for module in list(sys.modules.values()):
        for name, value in list(getattr(module, "__dict__", {}).items()):
            if value is original:
                setattr(module, name, made)


# --------------------------------------------------------------------------- replacements that are more than a word


def _seal_in_the_clear(_: Any) -> Any:
    return lambda to, plaintext, context, suite: bytes(suite.enc_bytes) + bytes(plaintext) + bytes(16)


def _unseal_in_the_clear(_: Any) -> Any:
    return lambda self, sealed, context, suite: bytes(sealed[suite.enc_bytes : -16])


def _without_limits(kinds: Any) -> Any:
    return {kind: (message, 2**40) for kind, (message, _) in kinds.items()}


def _swallowing(original: Any) -> Any:
    def call(*arguments: Any, **options: Any) -> Any:
        with suppress(Exception):
            return original(*arguments, **options)

    return call


def _unchecked(_: Any) -> Any:
    return lambda self, rows, what: [row[:-1] for row in rows]


def _of_one_model(original: Any) -> Any:
    return lambda self, round_id, model_version, last: original(self, round_id, model_version, 0)


def _the_last_one_stands(_: Any) -> Any:
    def freeze(self: Any, round_id: int, body: bytes, digest: bytes) -> None:
        with self._transaction() as db:
            db.execute("UPDATE rounds SET freeze = ?, freeze_digest = ? WHERE round_id = ?", (body, digest, round_id))
            self._stamp(round_id)

    return freeze


def _taken_for_delivered(_: Any) -> Any:
    async def deliver(self: Any, count_sent: Any) -> Any:
        from fedpruneshare.messages import Receipt, Verdict

        await self._send(list(range(self._count)), count_sent)
        upload = self._parcel.upload
        return Receipt(upload.round_id, upload.upload_id, Verdict.ACCEPTED)

    return deliver


def _without_a_fence_of_its_own(original: Any) -> Any:
    """The child as it is, but for the line that confines it."""

    def start(self: Any) -> None:
        from fedpruneshare.sparse import contained_model

        text = contained_model._PROGRAM.read_text("utf-8").replace("    _confine(memory_bytes)\n", "")
        program = Path(tempfile.mkdtemp()) / "model_child.py"
        program.write_text(text, "utf-8")
        contained_model._PROGRAM = program  # type: ignore[misc]
        original(self)

    return start


def _whatever_plan(_: Any) -> Any:
    return lambda self, plan: self.held()


def _finite_by_force(original: Any) -> Any:
    import numpy as np

    return lambda values, *rest: original(np.nan_to_num(values), *rest)


def _without_clipping(original: Any) -> Any:
    import numpy as np

    return lambda values, clips, *rest: original(values, np.full_like(clips, np.inf), *rest)


def _trusting_tls(original: Any) -> Any:
    def context(settings: Any) -> Any:
        made = original(settings)
        made.check_hostname, made.verify_mode = False, ssl.CERT_NONE
        return made

    return context


def _every_topic(original: Any) -> Any:
    def rules(federation: str, broker: Any, parties: Any) -> Any:
        from fedpruneshare.topics import AccessRule

        return original(federation, broker, parties) + [AccessRule(p, "write", "#") for p in parties]

    return rules


def _without_the_plan(original: Any) -> Any:
    return lambda federation, plan, *rest: original(federation, b"", *rest)


def _forgiving(original: Any) -> Any:
    def signing_key(self: Any, *rest: Any) -> Any:
        import msgspec

        return original(msgspec.structs.replace(self, revoked={}), *rest)

    return signing_key


def _without(line: str) -> Replacement:
    return lambda original: lambda *rest: [one for one in original(*rest) if one != line]


def _all_retained(channels: Any) -> Any:
    from dataclasses import replace

    return {name: replace(channel, retained=True) for name, channel in channels.items()}


def _newest_key(_: Any) -> Any:
    return lambda self, key_id: self.keys[0]


def _open_to_all(original: Any) -> Any:
    return lambda path, *parts, mode=0: original(path, *parts, mode=0o644)


def _in_place(_: Any) -> Any:
    def write(path: Path, *parts: bytes, mode: int = 0o644) -> None:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:
            for part in parts:
                file.write(part)

    return write


def _blames(_: Any) -> Any:
    from coordinator.checksums import RightAnswers

    def nearest(view: Any, sums: Any) -> Any:
        wrong = view.scheme.locate(sums)
        return RightAnswers(tuple(x for x in sorted(sums) if x not in wrong), wrong)

    return nearest


def _with_one_id(original: Any) -> Any:
    from dataclasses import replace

    return lambda *rest, **options: replace(original(*rest, **options), upload_id=bytes(16))


def _without_end(original: Any) -> Any:
    from dataclasses import replace

    return lambda *rest: replace(original(*rest), messages=10**9, total_bytes=10**12)


def _all_alike(original: Any) -> Any:
    return lambda self, payload: (original(self, payload)[0], self._known)


def _nobody_found_out(_: Any) -> Any:
    def judge(*_: Any) -> Any:
        from fedpruneshare.sharing.dealer_check import Judgement

        return Judgement((), ())

    return judge


# --------------------------------------------------------------------------- the list

SHARED, AGGREGATOR, COORDINATOR, DEVICE = (
    f"tests/{folder}/" for folder in ("fedpruneshare", "aggregator", "coordinator", "edge_client")
)
SIMULATION = "tests/faults/test_f02_simulation.py::test_a_slice"

SABOTAGES: tuple[Sabotage, ...] = (
    Sabotage(
        1,
        "shares are sealed",
        (("fedpruneshare.keys:seal", _seal_in_the_clear), ("fedpruneshare.keys:KeyPair.unseal", _unseal_in_the_clear)),
        (SHARED + "test_sealing.py::test_a_changed_byte_does_not_open",),
    ),
    Sabotage(
        1,
        "a seal is bound to its place",
        (("fedpruneshare.sealing:_context", gives(b"")),),
        (SHARED + "test_sealing.py::test_another_context_does_not_open",),
    ),
    Sabotage(
        1,
        "the directory is the root's",
        (("fedpruneshare.directory:verify", gives(True)),),
        (SHARED + "test_directory.py::test_another_root_is_refused",),
    ),
    Sabotage(
        1,
        "a directory of an unknown sender is the root's, too",
        (("fedpruneshare.directory:verify", gives(True)),),
        (SHARED + "test_trust.py::test_nothing_comes_into_force_that_the_root_has_not_signed_for_here[other root]",),
    ),
    Sabotage(
        2,
        "every message is signed",
        (("fedpruneshare.sealing:verify", gives(True)),),
        (SHARED + "test_sealing.py::test_signed_by_anybody_else_is_refused_by_name",),
    ),
    Sabotage(
        2,
        "a signature serves one kind of message",
        (("fedpruneshare.sealing:_signed_bytes", lambda _: lambda federation, kind, sender, body: body),),
        (SHARED + "test_sealing.py::test_a_signature_serves_one_kind_federation_and_sender",),
    ),
    Sabotage(
        3,
        "sizes are bounded before anything is decoded",
        (("fedpruneshare.messages:KINDS", _without_limits),),
        (SHARED + "test_messages.py::test_the_size_is_bounded_before_anything_is_decoded",),
    ),
    Sabotage(
        4,
        "an aggregator has a floor of its own",
        (("aggregator.rules:check_floors", OFF),),
        (AGGREGATOR + "test_book.py::test_the_aggregators_own_floor_stands_above_the_plans",),
    ),
    Sabotage(
        4,
        "cohorts are of the roster",
        (("fedpruneshare.plan:_check_parties", OFF),),
        (SHARED + "test_plan.py::test_an_unsound_plan_is_refused",),
    ),
    Sabotage(
        4,
        "no plan is below the directory's floors",
        (("fedpruneshare.plan:_check_floors", OFF),),
        (SHARED + "test_plan.py::test_the_directorys_floor_stands_above_the_lowest",),
    ),
    Sabotage(
        5,
        "one Freeze a round, also after a restart",
        (("aggregator.store:ShareStore.freeze", _the_last_one_stands),),
        (AGGREGATOR + "test_store.py::test_the_first_freeze_stands",),
    ),
    Sabotage(
        5,
        "two disjoint sets cannot open two sums",
        (("fedpruneshare.plan:_check_quorum", OFF),),
        (SHARED + "test_plan.py::test_two_disjoint_sets_must_not_open_two_sums",),
    ),
    Sabotage(
        5,
        "shares go with their sum",
        (("aggregator.store:ShareStore.burn", OFF),),
        (AGGREGATOR + "test_store.py::test_a_sum_takes_the_shares_with_it",),
    ),
    Sabotage(
        5,
        "no sum leaves before the last share is gone",
        (("aggregator.burning:Burner.start", gives(False)),),
        (AGGREGATOR + "test_service.py::test_no_sum_leaves_before_the_last_share_is_burned_also_after_power_failed",),
    ),
    Sabotage(
        6,
        "a receipt follows the commit",
        (("aggregator.store:ShareStore.add_chunks", _swallowing),),
        (AGGREGATOR + "test_service.py::test_a_full_disk_is_said_to_the_device_and_waited_out",),
    ),
    Sabotage(
        6,
        "a PUBACK is no receipt",
        (("edge_client.uploading:Courier.deliver", _taken_for_delivered),),
        (DEVICE + "test_uploading.py::test_it_sends_until_there_is_a_receipt",),
    ),
    Sabotage(
        6,
        "an upload is of one plan",
        (("edge_client.outbox:Outbox.get", _whatever_plan),),
        (DEVICE + "test_outbox_and_ledger.py::test_an_upload_is_found_again_by_its_plan_only",),
    ),
    Sabotage(
        6,
        "a finished round stays finished",
        (("edge_client.progress:Progress.finish", OFF),),
        (DEVICE + "test_outbox_and_ledger.py::test_a_finished_round_stays_finished",),
    ),
    Sabotage(
        7,
        "a wrong sum is noticed by its checksum",
        (
            ("fedpruneshare.sharing.checksum:is_checksum_right", gives(True)),
            ("coordinator.checksums:check_checksums", OFF),
        ),
        (COORDINATOR + "test_checksums.py::test_with_exactly_k_answers_no_wrong_word_goes_unnoticed",),
    ),
    Sabotage(
        7,
        "more than k sums must agree",
        (("fedpruneshare.sharing.shamir:SharingScheme.locate", gives(())),),
        (COORDINATOR + "test_opening.py::test_one_altered_word_is_noticed_by_the_third_sum",),
    ),
    Sabotage(
        7,
        "liars in league have no honest aggregator blamed",
        (("coordinator.answers:_nearest", _blames),),
        (COORDINATOR + "test_answers.py::test_two_in_league_cannot_have_an_honest_one_blamed_and_their_sum_opened",),
    ),
    Sabotage(
        7,
        "a device has no checksum but the plan's",
        (("edge_client.checksum_seed:hmac", to(SimpleNamespace(compare_digest=lambda *_: True))),),
        (DEVICE + "test_checksum_seed.py::test_a_seed_that_the_plan_does_not_commit_to_is_refused",),
    ),
    Sabotage(
        8,
        "sums cannot wrap",
        (("fedpruneshare.words:WordLayout.__post_init__", OFF),),
        (SHARED + "test_words.py::test_the_sum_of_weights_stays_below_the_modulus",),
    ),
    Sabotage(
        8,
        "words are below the modulus",
        (("fedpruneshare.sharing.field:check_canonical", OFF),),
        (COORDINATOR + "test_opening.py::test_sums_that_are_no_field_elements_are_refused",),
    ),
    Sabotage(
        8,
        "what is not finite is never sent",
        (("fedpruneshare.sparse.update:quantise", _finite_by_force),),
        (SHARED + "sparse/test_update.py::test_what_is_not_finite_is_never_sent",),
    ),
    Sabotage(
        9,
        "a broker proves who it is",
        (("fedpruneshare.link.tls:client_context", _trusting_tls),),
        (SHARED + "link/test_tls.py::test_broker_of_another_authority",),
    ),
    Sabotage(
        9,
        "a device writes only in its own name",
        (("fedpruneshare.topics:access_rules", _every_topic),),
        (SHARED + "test_topics.py::test_a_device_writes_only_in_its_own_name",),
    ),
    Sabotage(
        9,
        "a broker takes nobody without a certificate",
        (("firmware_configs.brokers.mosquitto:_security", _without("require_certificate true")),),
        (
            "tests/firmware_configs/brokers/test_brokers.py::test_shipped_brokers_take_certificates_alone_and_keep_their_limits",
        ),
    ),
    Sabotage(
        17,
        "the root says how many may collude",
        (("fedpruneshare.plan:_check_threshold", OFF),),
        (SHARED + "test_plan.py::test_no_plan_has_devices_deal_for_fewer_than_the_root_wants",),
    ),
    Sabotage(
        9,
        "nothing is retained where nothing is to be kept",
        (("fedpruneshare.party:CHANNELS", _all_retained),),
        (SHARED + "test_party.py::test_a_retained_message_on_a_channel_that_keeps_nothing_is_refused",),
    ),
    Sabotage(
        10,
        "the model of a device never falls",
        (("edge_client.progress:Progress.check_model", OFF),),
        (DEVICE + "test_outbox_and_ledger.py::test_the_version_of_models_never_falls_but_for_a_new_epoch",),
    ),
    Sabotage(
        10,
        "rounds and models of an aggregator never fall",
        (("aggregator.rules:Order.check", OFF),),
        (AGGREGATOR + "test_rules.py::test_models_never_fall_back_but_for_a_new_epoch",),
    ),
    Sabotage(
        10,
        "what expired is refused",
        (("fedpruneshare.plan:_check_times", OFF),),
        (SHARED + "test_plan.py::test_what_expired_is_refused_with_both_times",),
    ),
    Sabotage(
        10,
        "there is no way back to an older directory",
        (("fedpruneshare.party:Party._is_newer", gives(True)),),
        (SHARED + "test_party.py::test_there_is_no_way_back_also_after_a_restart",),
    ),
    Sabotage(
        11,
        "a revoked device is out within the round",
        (("fedpruneshare.directory:Directory.is_revoked", gives(False)),),
        (AGGREGATOR + "test_service.py::test_a_revoked_device_is_out_within_the_round",),
    ),
    Sabotage(
        11,
        "what a key has signed that was revoked since is not asked for",
        (("coordinator.service:Coordinator._leave_out_revoked", OFF),),
        (COORDINATOR + "test_revoked_keys.py",),
    ),
    Sabotage(
        11,
        "a revoked key signs nothing",
        (("fedpruneshare.directory:Directory.signing_key", _forgiving),),
        (SHARED + "test_party.py::test_unknown_expired_and_revoked_keys_are_refused_by_name",),
    ),
    Sabotage(
        12,
        "a fence before every ONNX library",
        (("fedpruneshare.sparse.model_fence:check_model", gives({})),),
        (SHARED + "sparse/test_model_fence.py::test_a_hostile_file_is_refused_by_name",),
    ),
    Sabotage(
        13,
        "a share is of one plan",
        (("fedpruneshare.sealing:share_context", _without_the_plan),),
        (SHARED + "test_sealing.py::test_another_context_does_not_open",),
    ),
    Sabotage(
        14,
        "a device looks at its model",
        (("edge_client.gate:check_model", OFF),),
        (DEVICE + "test_gate.py::test_a_crafted_model_is_refused_by_name",),
    ),
    Sabotage(
        14,
        "no upload is one gradient",
        (("edge_client.gate:check_steps", OFF),),
        (DEVICE + "test_gate.py::test_too_few_examples_for_two_steps_is_a_reason_to_decline",),
    ),
    Sabotage(
        15,
        "updates are clipped",
        (("fedpruneshare.sparse.update:quantise", _without_clipping),),
        (SHARED + "sparse/test_update.py::test_clipped_values_land_on_the_ends",),
    ),
    Sabotage(
        15,
        "an average is no more than its clips allow",
        (("coordinator.gate:check_bounds", OFF),),
        (COORDINATOR + "test_gate.py::test_more_than_clipped_updates_add_up_to_is_refused",),
    ),
    Sabotage(
        15,
        "a model that is much worse is not taken",
        (("coordinator.gate:check_score", OFF),),
        (COORDINATOR + "test_gate.py::test_a_model_that_scores_too_much_worse_is_refused",),
    ),
    Sabotage(
        16,
        "private keys are written for their owner alone",
        (("fedpruneshare.keys:write_atomically", _open_to_all),),
        (SHARED + "test_sealing.py::test_keys_are_kept_from_others",),
    ),
    Sabotage(
        16,
        "private keys that others can read are refused",
        (("fedpruneshare.keys:refuse_open_file", gives(None)),),
        (SHARED + "test_sealing.py::test_keys_are_kept_from_others",),
    ),
    Sabotage(
        16,
        "a request is signed by the key it is for, or by the one in force",
        (("firmware_configs.provision.enrolment:verify", gives(True)),),
        ("tests/firmware_configs/provision/test_enrolment.py::test_a_request_that_was_changed_on_its_way_is_refused",),
    ),
    Sabotage(
        17,
        "no sum before a quorum has accepted the Freeze",
        (("aggregator.quorum:Quorum.is_met", gives(True)),),
        (AGGREGATOR + "test_service.py::test_no_sum_leaves_before_enough_have_accepted_the_same_freeze",),
    ),
    Sabotage(
        18,
        "sums of a retry differ by nobody or by many",
        (("aggregator.rules:check_differences", OFF),),
        (AGGREGATOR + "test_service.py::test_a_retry_on_the_same_model_may_not_differ_by_few_devices",),
    ),
    Sabotage(
        18,
        "sums of any models differ by nobody or by many, where an aggregator wants it",
        (("aggregator.store:ShareStore.sums_given", _of_one_model),),
        (
            AGGREGATOR
            + "test_service.py::test_by_its_own_setting_an_aggregator_looks_at_the_last_rounds_whatever_their_model",
        ),
    ),
    Sabotage(
        18,
        "the coordinator chooses sets that aggregators let pass",
        (("coordinator.deciding:Decider.recall", OFF),),
        (COORDINATOR + "test_differences.py::test_a_fleet_goes_on_after_one_device_has_gone_for_good",),
    ),
    Sabotage(
        19,
        "who deals what fits no polynomial is left out",
        (("fedpruneshare.sharing.dealer_check:judge", _nobody_found_out),),
        (COORDINATOR + "test_ledger.py::test_devices_that_fail_it_are_not_frozen",),
    ),
    Sabotage(
        20,
        "keys expire",
        (("fedpruneshare.directory:_check_current", OFF),),
        (SHARED + "test_party.py::test_unknown_expired_and_revoked_keys_are_refused_by_name",),
    ),
    Sabotage(
        20,
        "a message names its key",
        (("fedpruneshare.keys:Identity._key", _newest_key),),
        (SHARED + "test_keys.py::test_after_a_rotation_both_keys_open_and_after_two_the_first_does_not",),
    ),
    Sabotage(
        21,
        "a device has a quota before any signature is checked",
        (("fedpruneshare.quota:Quota.refuse", gives("")),),
        (AGGREGATOR + "test_service.py::test_a_flood_of_one_device_costs_no_signature_and_nobody_else_anything",),
    ),
    Sabotage(
        21,
        "what devices say on the control broker is counted, too",
        (("fedpruneshare.quota:usual_allowance", _without_end),),
        (COORDINATOR + "test_desk.py::test_a_flood_of_one_device_costs_the_coordinator_next_to_nothing",),
    ),
    Sabotage(
        21,
        "declines are counted, too",
        (("fedpruneshare.quota:usual_allowance", _without_end),),
        (AGGREGATOR + "test_service.py::test_a_flood_of_declines_costs_no_signature_and_nobody_else_anything",),
    ),
    Sabotage(
        21,
        "what unknown senders say of directories is kept apart",
        (("fedpruneshare.trust:DirectoryWatcher._read", _all_alike),),
        (SHARED + "test_trust.py::test_what_strangers_send_pushes_out_nothing_of_the_coordinators",),
    ),
    Sabotage(
        21,
        "what unknown senders say of directories is counted",
        (("fedpruneshare.trust:DirectoryWatcher._may_look", gives(True)),),
        (SHARED + "test_trust.py::test_in_a_minute_no_more_is_looked_at_than_the_largest_directory_twice",),
    ),
    Sabotage(
        21,
        "a store has a limit",
        (("aggregator.store:ShareStore.has_room_for", gives(True)),),
        (AGGREGATOR + "test_store.py::test_the_store_has_a_limit",),
    ),
    Sabotage(
        25,
        "a federation may demand hybrid seals",
        (("fedpruneshare.plan:_check_seals", OFF),),
        (SHARED + "test_plan.py::test_a_federation_may_demand_hybrid_seals",),
    ),
    # ------------------------------------------------------------------ beyond the ranked list
    Sabotage(
        0,
        "single updates are shown only where an aggregator allows it",
        (("aggregator.rules:check_privacy", OFF),),
        (AGGREGATOR + "test_book.py::test_single_updates_are_shown_only_where_the_aggregator_allows_it",),
    ),
    Sabotage(
        0,
        "damage of a store is found at the start",
        (("fedpruneshare.storage:_prepare", OFF),),
        (SHARED + "test_storage.py::test_damage_is_found_at_the_start",),
    ),
    Sabotage(
        0,
        "commits behind a break in a store's log are not given up in silence",
        (("fedpruneshare.storage:lost_commits", gives(0)),),
        (SHARED + "test_wal.py::test_a_bit_in_the_log_costs_no_more_than_two_commits_in_silence",),
    ),
    Sabotage(
        0,
        "a flipped bit in a stored share is noticed",
        (("fedpruneshare.storage:row_digest", gives(bytes(32))),),
        ("tests/faults/test_f09_damage.py::test_damaged_databases",),
    ),
    Sabotage(
        0,
        "a flipped bit in what was accepted and summed is noticed",
        (("aggregator.store:ShareStore._checked", _unchecked),),
        (AGGREGATOR + "test_store.py::test_a_flipped_bit_is_found_before_it_makes_another_sum",),
    ),
    Sabotage(
        12,
        "a model of somebody else can open nothing",
        (("fedpruneshare.sparse.contained_model:ContainedModel._start", _without_a_fence_of_its_own),),
        (SHARED + "sparse/test_contained_model.py::test_the_process_can_open_nothing",),
    ),
    Sabotage(
        0,
        "a store is one process's",
        (("fedpruneshare.at_work:_is_taken", gives(True)),),
        (SHARED + "test_at_work.py::test_a_store_is_one_process_s_and_free_again_when_that_is_killed",),
    ),
    Sabotage(
        0,
        "a file is replaced whole",
        (("fedpruneshare.storage:write_atomically", _in_place),),
        ("tests/faults/test_f09_damage.py::test_a_change_that_fails_leaves_the_old_or_the_new",),
    ),
    Sabotage(
        0,
        "a model that fails on trial is given up",
        (("edge_client.inference.slots:ModelSlots.begin_try", gives(True)),),
        (DEVICE + "inference/test_slots.py::test_a_trial_that_ends_whatever_tries_it_is_given_up",),
    ),
    Sabotage(
        0,
        "what is over is known from either copy",
        (("edge_client.progress:_decoded", gives(None)),),
        (DEVICE + "test_outbox_and_ledger.py::test_one_damaged_copy_opens_no_old_round",),
    ),
    # ------------------------------------------------------------------ as the simulation sees it
    Sabotage(
        5,
        "a second Freeze, simulated",
        (("aggregator.book:ShareBook.freeze", OFF), ("aggregator.store:ShareStore.freeze", _swallowing)),
        (SIMULATION,),
        r"'I[134] ",
    ),
    Sabotage(
        4, "a Freeze below the floor, simulated", (("aggregator.rules:check_floors", OFF),), (SIMULATION,), r"'I5 "
    ),
    Sabotage(
        6,
        "other words under an old upload id, simulated",
        (("edge_client.fresh_upload:new_upload", _with_one_id),),
        (SIMULATION,),
        r"'I11 ",
    ),
)
BY_NAME = {sabotage.name: sabotage for sabotage in SABOTAGES}
