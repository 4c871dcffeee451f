import json

import pytest

from kvtier.tiers.nvme.store.namespaces import Identity

ONE = Identity({"model": "m", "dtype": "bfloat16"})


def test_every_field_and_their_order_are_in_the_digest() -> None:
    others = [
        Identity({"model": "m", "dtype": "float16"}),
        Identity({"model": "m"}),
        Identity({"dtype": "bfloat16", "model": "m"}),
        Identity({"model": 'm","dtype', "bfloat16": ""}),
        Identity({}),
    ]
    digests = {identity.digest for identity in (ONE, *others)}
    assert len(digests) == 6
    assert all(len(digest) == 32 for digest in digests)


def test_the_name_is_for_people_only() -> None:
    assert Identity(ONE.fields, "mine").digest == ONE.digest
    assert (ONE.label, Identity(ONE.fields, "mine").label) == ("m", "mine")
    assert Identity({"a": "b"}).label == Identity({"a": "b"}).digest.hex()[:12]


def test_a_difference_names_the_field() -> None:
    assert ONE.differences(ONE) == ()
    assert ONE.differences(Identity({"model": "m", "dtype": "fp8", "rank": "1"})) == (
        "dtype is 'bfloat16' here and 'fp8' there",
        "rank is None here and '1' there",
    )


def test_it_survives_being_written_out() -> None:
    back = Identity.from_json(json.loads(json.dumps(ONE.to_json())))
    assert back.digest == ONE.digest
    assert back.label == "m"


@pytest.mark.parametrize("document", [None, [], {}, {"name": "x"}, {"name": 1, "fields": []}, {"fields": []}])
def test_what_is_no_identity_is_refused(document: object) -> None:
    with pytest.raises(ValueError, match="an identity"):
        Identity.from_json(document)
