"""What config.json means by what it does not say, compared with transformers."""

from __future__ import annotations

import pytest

from xmerge.architecture import Family, list_families

ALWAYS_SAID = ("tie_word_embeddings",)
"""Keys that a family has another field for."""


@pytest.mark.parametrize(
    "family", [family for family in list_families() if not family.unchecked], ids=lambda family: family.family
)
def test_a_key_that_is_left_out_means_what_transformers_takes_it_for(family: Family) -> None:
    """Whether a tensor exists is decided as the model's own class does where config.json is silent."""
    from transformers import CONFIG_MAPPING

    if family.model_types[0] not in CONFIG_MAPPING:
        pytest.skip(f"transformers has no {family.model_types[0]}")
    config = CONFIG_MAPPING[family.model_types[0]]().get_text_config()
    keys = {key for each in family.templates for key in (each.when, each.when_not) if key and key not in ALWAYS_SAID}
    for key in sorted(keys):
        meant = getattr(config, key, None)
        if meant is None or isinstance(meant, bool):
            assert family.defaults.get(key, False) == bool(meant), key
