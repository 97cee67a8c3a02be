"""`xmerge verify`."""

from __future__ import annotations

import json

from tests.fake_checkpoints import write_fake


def test_a_foreign_tensor_ends_in_exit_4(xmerge, tmp_path):
    """A tensor that the family does not have is found, named with its layer, and ends in exit 4."""
    name = "model.layers.3.self_attn.k_norm.weight"
    folder = write_fake(tmp_path / "model", extra={name: ("BF16", (4,))})
    said = xmerge("verify", folder)
    assert said.exit_code == 4
    assert "foreign_tensor" in said.out
    assert f"layer 3: '{name}'" in said.out.replace("\n", " ")


def test_json_gives_findings_as_data(xmerge, tmp_path):
    """A machine reads each finding with its code, tensor, layer and remedy."""
    base = write_fake(tmp_path / "base")
    other = write_fake(tmp_path / "other", intermediate_size=20)
    said = xmerge("verify", other, "--base", base, "--json")
    assert said.exit_code == 4
    findings = json.loads(said.out)["findings"]
    assert {each["code"] for each in findings} == {"wrong_shape"}
    assert {each["layer"] for each in findings} == {0, 1, 2, 3}
    assert all(each["remedy"] for each in findings)


def test_a_folder_that_is_not_there_ends_in_exit_3(xmerge, tmp_path):
    """A missing folder is an input that is missing."""
    said = xmerge("verify", tmp_path / "nowhere")
    assert said.exit_code == 3
    assert "nowhere" in said.err


def test_a_base_that_cannot_be_read_is_refused_in_words(xmerge, tmp_path):
    """A reference with two '@' is a person's mistake, not a bug."""
    folder = write_fake(tmp_path / "model")
    said = xmerge("verify", folder, "--base", "a@b@c")
    assert said.exit_code == 2
    assert "more than one '@'" in said.err


def test_the_trial_load_can_be_left_out(xmerge, tmp_path):
    """What was not tried is said."""
    folder = write_fake(tmp_path / "model")
    said = xmerge("verify", folder, "--skip-trial-load")
    assert "no: skipped as asked" in said.out
