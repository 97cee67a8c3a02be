"""Places in a file."""

from xmerge.config.source import ConfigSource, show_path


def test_a_path_reads_as_in_code():
    """Keys are joined by dots, and places in a list stand in brackets."""
    assert show_path(("slices", 0, "sources", 1)) == "slices[0].sources[1]"
    assert show_path(()) == ""
    assert show_path(("tokens", "\x1b[0m")) == r"tokens.'\x1b[0m'"


def test_the_line_is_that_of_the_deepest_part_the_file_has():
    """A place that the file does not have is told with the line of what it has around it."""
    source = ConfigSource("recipe.yml", lines={(): 1, ("models",): 2, ("models", 0): 3})
    assert source.locate("models", 0, "model") == "recipe.yml, line 3: models[0].model"
    assert source.locate("slices") == "recipe.yml, line 1: slices"
    assert source.locate() == "recipe.yml, line 1"


def test_without_a_file_there_is_no_line():
    """A configuration that came from no file is told by name and path alone."""
    assert ConfigSource().locate("models", 0) == "the configuration: models[0]"
