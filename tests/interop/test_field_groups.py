"""Fields of configurations inside of configurations are checked like others, with their path."""

import pytest

from t5lite.core.errors import UserError
from t5lite.interop.field_groups import FieldGroups, check_known, check_required, unknown_fields

INNER = FieldGroups(applied=frozenset({"width"}), required={"bias": (False, None)})
GROUPS = FieldGroups(applied=frozenset({"depth"}), parts={"decoder": INNER})


def test_unknown_fields_have_their_path():
    settings = {"depth": 1, "gate": 2, "decoder": {"width": 3, "gate": 4, "other": None}}
    assert unknown_fields(settings, GROUPS) == {"gate": 2, "decoder.gate": 4}


def test_unknown_field_of_a_part_is_rejected_by_its_path_unless_it_is_ignored():
    settings = {"depth": 1, "decoder": {"gate": 4}}
    with pytest.raises(UserError, match=r"config.json must hold only .*, got decoder.gate=4; name"):
        check_known(settings, GROUPS, (), "config.json")
    check_known(settings, GROUPS, ["decoder.gate"], "config.json")


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("decoder.width", "which is known"),
        ("decoder.gate", "which it does not have"),
        ("encoder.gate", "which it does not have"),
    ],
)
def test_ignored_path_must_lead_to_an_unknown_field(name, why):
    with pytest.raises(UserError, match=f"unknown fields of c, got '{name}', {why}"):
        check_known({"decoder": {"width": 3}}, GROUPS, [name], "c")


def test_required_field_of_a_part_is_rejected_by_its_path():
    check_required({"decoder": {"bias": None}}, GROUPS, "c")
    with pytest.raises(UserError, match="c: decoder.bias must be False, got True; t5lite has no"):
        check_required({"decoder": {"bias": True}}, GROUPS, "c")


def test_part_that_is_no_configuration_is_rejected():
    check_known({"decoder": None}, GROUPS, (), "c")
    with pytest.raises(UserError, match="c: decoder must hold a configuration, got 3"):
        check_known({"decoder": 3}, GROUPS, (), "c")
