"""What was found in systems like this one, and which test proves that it does not happen here.

pickle in a data object (CVE-2022-34668, NVFLARE), and every other loader that makes objects
    architecture/test_imports.py::test_every_file_imports_and_calls_only_what_it_may
    architecture/test_imports.py::test_an_offence_is_seen
    security/test_payloads.py::test_a_pickle_is_malformed_wherever_it_comes_and_is_never_loaded
msgpack extensions and names of types that are imported (CVE-2026-24186, NVFLARE FOBS)
    security/test_payloads.py::test_a_name_in_a_message_imports_nothing
    security/test_payloads.py::test_an_extension_of_any_code_and_length_is_refused
    security/test_payloads.py::test_a_timestamp_is_refused_in_each_of_its_forms
deserialised before it was authenticated (CVE-2026-5536, FedML)
    security/test_payloads.py::test_an_unsigned_body_never_reaches_a_decoder
    security/test_payloads.py::test_an_unsigned_line_never_reaches_a_decoder_but_on_the_topics_of_introductions
    security/test_payloads.py::test_who_brings_a_certificate_is_read_once_within_the_size_of_a_line
    unit/test_ingress.py::test_an_unsigned_payload_is_never_parsed
yaml.load (CVE-2022-31605, CVE-2022-31604, NVFLARE)
    security/test_payloads.py::test_an_object_of_yaml_in_a_configuration_file_is_refused
    security/test_payloads.py::test_a_setting_that_looks_like_code_stays_text
denial of service, and one participant in another's place (CVE-2022-21822, CVE-2026-24178, CVE-2026-24204, NVFLARE)
    unit/test_ingress.py::test_each_kind_of_topic_has_its_own_limit
    unit/test_ingress.py::test_a_flood_of_refusals_is_news_ever_more_seldom
    unit/test_ingress.py::test_nobody_speaks_in_anothers_branch
    security/test_replay.py::test_the_topic_the_header_and_the_key_name_one_client
    unit/test_broker_connection.py::test_a_pace_counts_messages_and_bytes_of_each_second
    unit/test_broker_connection.py::test_a_full_inbox_pauses_reading_until_it_has_been_emptied
    integration/test_broker_limits.py::test_before_connect_packets_are_short
    unit/test_services.py::test_an_update_in_anothers_name_or_for_another_run_is_not_invited
    faults/test_lies.py::test_a_flood_of_different_updates_from_one_client_keeps_nobody_else_waiting
torch.load, also with weights_only (CVE-2025-32434, CVE-2026-24747)
    architecture/test_imports.py::test_an_offence_is_seen
    security/test_known_vulnerabilities.py::test_the_floors_are_above_what_is_broken
msgpack that leaks or goes on after an error (GHSA-6v7p-g79w-8964, CVE-2026-114613)
    security/test_known_vulnerabilities.py::test_the_floors_are_above_what_is_broken
    security/test_memory.py::test_a_hundred_thousand_malformed_messages_leave_nothing_behind
    security/test_memory.py::test_a_hundred_thousand_malformed_packets_leave_nothing_behind
arrays of objects (msgpack-numpy; CVE-2019-6446, numpy.load)
    security/test_known_vulnerabilities.py::test_what_makes_objects_is_neither_wanted_nor_here
    security/test_updates.py::test_a_type_is_one_of_four_names
    security/test_known_vulnerabilities.py::test_every_codec_holds_plain_floats
decompression bombs
    unit/test_inflate.py::test_every_bomb_is_refused
    unit/test_inflate.py::test_each_is_refused_for_what_it_is
    unit/test_inflate.py::test_a_frame_costs_its_size_and_a_constant
    unit/test_services.py::test_an_update_that_is_a_bomb_is_malformed_and_the_round_goes_on
msgpack bombs
    unit/test_codec.py::test_what_is_not_canonical_or_not_plain_is_refused
    security/test_payloads.py::test_a_bomb_is_malformed_and_costs_little
    security/test_payloads.py::test_a_bomb_that_is_signed_is_refused_as_well
    security/test_payloads.py::test_a_line_that_is_a_bomb_is_malformed
    security/test_any_bytes.py::test_bytes_that_were_good_once_end_in_what_is_allowed
    security/test_any_bytes.py::test_any_bytes_end_in_what_is_allowed
NaN, infinities, numbers that overflow, denormals, minus zero
    unit/test_screening.py::test_a_bad_one_has_its_reason
    security/test_updates.py::test_values_that_would_spoil_a_model_have_their_reason
    security/test_updates.py::test_half_floats_that_overflowed_on_the_way_are_not_finite_once_they_are_decoded
    security/test_updates.py::test_denormals_and_minus_zero_are_numbers_like_others
shapes, sizes, schemas
    unit/test_tensors.py::test_what_cannot_be_a_model_is_refused
    security/test_updates.py::test_a_manifest_that_cannot_be_is_refused_before_anything_is_allocated
    security/test_updates.py::test_a_shape_that_cannot_be_is_refused_before_anything_is_allocated
    security/test_updates.py::test_the_elements_of_a_blob_are_those_of_the_schema_whatever_its_manifest_says
    unit/test_services.py::test_an_update_that_cannot_be_what_was_asked_for_is_refused_before_it_is_fetched
counts: examples that are none, too many or no whole number
    unit/test_codec.py::test_examples_must_be_a_whole_positive_number
    security/test_updates.py::test_examples_are_a_whole_number_from_one_to_the_cap
    security/test_updates.py::test_examples_that_are_no_number_are_refused
    faults/test_lies.py::test_numbers_at_their_bounds_stop_neither_a_run_nor_its_resumption
replay: twice, elsewhere, as another type, from another federation, run or start
    unit/test_ingress.py::test_each_number_passes_once_unless_it_is_too_old
    unit/test_ingress.py::test_an_envelope_of_a_replaced_coordinator_is_fenced_off
    security/test_replay.py::test_what_was_said_once_is_said_once
    security/test_replay.py::test_a_message_counts_on_no_other_topic_of_any_kind
    security/test_replay.py::test_a_message_counts_as_no_other_type
    security/test_replay.py::test_a_message_counts_in_no_other_federation
    security/test_replay.py::test_a_start_that_was_replayed_does_not_come_back
    unit/test_services.py::test_an_update_in_anothers_name_or_for_another_run_is_not_invited
    unit/test_round.py::test_what_does_not_belong_here_is_refused_with_its_reason
    unit/test_round.py::test_another_update_of_a_client_is_an_equivocation_and_the_first_one_stays
    unit/test_buffer.py::test_updates_from_elsewhere_are_refused
    unit/test_buffer.py::test_an_update_from_a_base_that_only_waits_for_another_client_is_too_stale
ids that are paths (CVE-2026-109156, CVE-2026-109153)
    unit/test_blobs.py::test_a_name_that_is_no_digest_never_becomes_a_path
    unit/test_topics.py::test_what_looks_like_a_topic_of_ours_but_is_none
    security/test_paths.py::test_what_leads_elsewhere_is_no_name_for_anybody
    security/test_paths.py::test_what_leads_elsewhere_is_no_digest
    security/test_paths.py::test_a_transcript_names_blobs_by_digests_only
algorithm confusion (CVE-2015-9235 and its kind), short keys, other salts
    unit/test_identity.py::test_only_pss_with_a_salt_of_32_bytes_verifies
    unit/test_identity.py::test_short_odd_and_foreign_keys_are_refused
    security/test_replay.py::test_only_the_signature_that_goes_with_the_key_counts
    security/test_replay.py::test_an_rsa_signature_under_the_kid_of_an_ed25519_key_does_not_count
words of a peer in logs and on the terminal, secrets in logs
    unit/test_log.py::test_nobody_forges_a_line
    unit/test_wording.py::test_what_an_operator_should_see_is_put_into_words
    unit/test_identity.py::test_a_key_is_never_printed
"""

import ast
import re
import tomllib
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from common.compression import CODECS, Floats

TESTS = Path(__file__).parents[1]
PROJECT = tomllib.loads((TESTS.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
WANTED = [
    *PROJECT["dependencies"],
    *(one for extra in PROJECT["optional-dependencies"].values() for one in extra),
]
PROOFS = re.findall(r"^    (\S+)::(\w+)$", __doc__, re.MULTILINE)
ROWS = [row for row in __doc__.split("\n\n", 1)[1].splitlines() if row and not row.startswith("    ")]


def numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:3])


@pytest.mark.parametrize(("path", "name"), sorted(set(PROOFS)))
def test_every_proof_exists(path, name):
    tree = ast.parse((TESTS / path).read_text(encoding="utf-8"))
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_row_has_a_proof():
    lines = __doc__.split("\n\n", 1)[1].splitlines()
    assert len(ROWS) > 15
    assert all(lines[lines.index(row) + 1].startswith("    ") for row in ROWS)


@pytest.mark.parametrize(("name", "floor"), [("msgpack", (1, 2, 3)), ("torch", (2, 10))])
def test_the_floors_are_above_what_is_broken(name, floor):
    (wanted,) = [one for one in WANTED if re.match(rf"{name}\b(?!-)", one)]
    assert numbers(re.search(r">=([\d.]+)", wanted)[1]) >= floor
    assert numbers(version(name)) >= floor


def test_what_makes_objects_is_neither_wanted_nor_here():
    assert not any(re.match(r"(?i)msgpack[-_]numpy|dill|cloudpickle|jsonpickle", one) for one in WANTED)
    assert find_spec("msgpack_numpy") is None


def test_every_codec_holds_plain_floats():
    floats = [codec.spelling.dtype for codec in CODECS.values() if isinstance(codec.spelling, Floats)]
    assert set(floats) == {np.dtype("<f4"), np.dtype("<f2")}
    assert not any(dtype.hasobject for dtype in floats)
