"""Files from somebody else: names that become paths, strict JSON and YAML, errors of one line."""

import json

import pytest
import yaml
from statezoo.zoo.errors import BadArgument, ZooError, unknown
from statezoo.zoo.files import locked, read_json
from statezoo.zoo.foreign import LARGEST_YAML, below, is_name, parse_yaml, read_yaml, reading, safe_name

GOOD_NAMES = ["sasrec", "ml-100k", "moleculenet:esol", "net.py", "a@b+c", "...", ".hidden", "a." * 40, "x" * 255]
BAD_NAMES = [
    "", ".", "..", "../x", "x/..", "a/b", "/etc/passwd", "a\\b", "C:\\x", "a\0b", "a\nb", "a b", "a\n", "\x1b[31m", "~",
    "х" + "y", "a\u200bb", "a\uff0fb", "a\u2024\u2024", "x" * 256, "x" * 10**6, None, 3, True, ["a"], {"a": 1}, b"a",
]  # fmt: skip


def one_line(caught):
    text = str(caught.value)
    assert text and text.isprintable() and len(text) < 5000, text
    return text


@pytest.mark.parametrize("name", GOOD_NAMES)
def test_names_stay_below_their_root(tmp_path, name):
    assert safe_name(name, "model", "x.json") == name
    assert below(tmp_path, name, "b").parent.parent == tmp_path
    assert below(tmp_path, name).resolve().is_relative_to(tmp_path.resolve())


@pytest.mark.parametrize("name", BAD_NAMES, ids=lambda name: repr(name)[:20])
def test_what_is_no_name_is_one_line_and_no_path(tmp_path, name):
    assert not is_name(name)
    with pytest.raises(ZooError) as caught:
        safe_name(name, "model", "x.json")
    assert one_line(caught).startswith("x.json: model ") and "letters, digits and . _ @ + : -" in one_line(caught)
    with pytest.raises(ZooError) as caught:
        below(tmp_path, "a", name, "b")
    one_line(caught)


@pytest.mark.parametrize("kind", [ZooError, BadArgument])
def test_errors_are_one_line_whatever_stands_in_them(kind):
    text = str(kind("a\nb\r\x1b[31mred\0 \udc80 é \u2028"))
    assert text == "a\\nb\\r\\x1b[31mred\\x00 \\udc80 é \\u2028"
    assert len(str(kind("x" * 10**6))) < 5000
    assert len(str(unknown("model", "x" * 10**6, ["sasrec"]))) < 300


# JSON ---------------------------------------------------------------------------------------------------------------

BAD_JSON = {
    "key twice": '{"a": 1, "a": 1}',
    "key twice below": '{"b": [{"a": 1, "c": 2, "a": {}}]}',
    "key twice by escape": '{"a": 1, "\\u0061": 2}',
    "nan": '{"a": NaN}',
    "infinity": "[-Infinity]",
    "float beyond": "[1e999]",
    "huge int": "9" * 5000,
    "more than 64 bits": "[18446744073709551616]",
    "deep": "[" * 100 + "]" * 100,
    "very deep": "[" * 10**6,
    "many": "[" + "[]," * 10**6 + "[]]",
    "not UTF-8": b"\xff\xfe{}",
    "two values": "{} {}",
    "nothing": "",
    "NUL": "\0",
}


@pytest.mark.parametrize("text", BAD_JSON.values(), ids=BAD_JSON)
def test_json_that_is_not_plain_is_one_line(tmp_path, text):
    (tmp_path / "a.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ZooError, match=r"a\.json: not valid JSON") as caught:
        read_json(tmp_path / "a.json")
    one_line(caught)


def test_json_that_is_plain_is_read(tmp_path):
    for value in ({"a": [1, -2.5, None, True, "é", 2**64 - 1, -(2**63)]}, 3, "x", [], 1e300):
        (tmp_path / "a.json").write_text(json.dumps(value))
        assert read_json(tmp_path / "a.json") == value


def test_json_of_enormous_size_is_not_read(tmp_path):
    with open(tmp_path / "a.json", "wb") as file:
        file.truncate(1 << 40)  # a terabyte that takes no disk
    with pytest.raises(ZooError, match="more than such a file has"):
        read_json(tmp_path / "a.json")
    for path in (tmp_path, tmp_path / "none.json", "/dev/zero"):
        with pytest.raises(ZooError, match="no such file"):
            read_json(path)


# YAML ---------------------------------------------------------------------------------------------------------------

BOMB = "a: &a [x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [*{chr(97 + i)}, *{chr(97 + i)}]\n" for i in range(20)
)
BAD_YAML = {
    "key twice": "a: 1\nb: 2\na: 1\n",
    "key twice below": "a:\n  b: {c: 1, d: 2, c: 1}\n",
    "key twice in two spellings": "a: 1\n'a': 2\n",
    "bomb": BOMB,
    "alias": "a: &x [1]\nb: *x\n",
    "itself": "&x [*x]",
    "merge": "a: {<<: {b: 1}, b: 2}\n",
    "object": "a: !!python/object/apply:os.system ['true']\n",
    "name": "a: !!python/name:os.system\n",
    "module": "!!python/module:os {}\n",
    "own tag": "a: !mine 3\n",
    "binary": "a: !!binary aGk=\n",
    "set": "a: !!set {x}\n",
    "pairs": "a: !!omap [x: 1]\n",
    "tag that lies": "a: !!int many\n",
    "tag that lies about bool": "a: !!bool many\n",
    "list as int": "a: !!int [1]\n",
    "number as key": "1: a\n",
    "list as key": "[a]: b\n",
    "null as key": "~: b\n",
    "huge int": "a: " + "9" * 5000,
    "int beyond 64 bits": "a: 9223372036854775808\n",
    "sexagesimal": "a: " + ":".join(["59"] * 100),
    "nan": "a: .nan\n",
    "infinity": "a: -.inf\n",
    "float beyond": "a: 1.0e+999\n",
    "deep": "[" * 100 + "]" * 100,
    "very deep": "[" * 10**5,
    "deep in blocks": "".join(" " * i + "a:\n" for i in range(300)),
    "two documents": "a: 1\n---\nb: 2\n",
    "control character": "a: \x07\n",
    "not UTF-8": b"a: \xff\n",
    "open": "a: [1\n",
    "large": "a: 1\n" * LARGEST_YAML,
}


@pytest.mark.parametrize("text", BAD_YAML.values(), ids=BAD_YAML)
def test_yaml_that_is_not_plain_is_one_line(tmp_path, text):
    (tmp_path / "a.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ZooError, match=r"a\.yaml") as caught:
        read_yaml(tmp_path / "a.yaml")
    one_line(caught)
    if isinstance(text, str):
        with pytest.raises(yaml.YAMLError):
            parse_yaml(text)


def test_yaml_errors_name_the_line(tmp_path):
    (tmp_path / "a.yaml").write_text("model:\n  name: x\n  dim: 3\n  name: y\n")
    with pytest.raises(ZooError, match=r"a\.yaml, line 4: .*the key 'name' stands twice"):
        read_yaml(tmp_path / "a.yaml")


def test_yaml_that_is_plain_is_read(tmp_path):
    value = {"a": {"b": [1, -2.5, None, True, "é", "", "1e-3", {"c": [[]]}]}, "seed": 2**62, "on": "x: y"}
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(value, allow_unicode=True))
    assert read_yaml(tmp_path / "a.yaml") == value
    assert parse_yaml("2020-01-01") == "2020-01-01" and parse_yaml("") is parse_yaml("~") is None
    assert parse_yaml("{a: 0x10, b: 010, c: 1_000}") == {"a": 16, "b": 8, "c": 1000}


# other libraries ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error", [KeyError("x\ny"), MemoryError(), RecursionError("deep"), OSError("cut"), IndexError(3)]
)
def test_what_a_library_raises_on_a_file_is_one_line(error):
    with (
        pytest.raises(ZooError, match=r"f\.bin: is no weights file that can be read \(") as caught,
        reading("f.bin", "weights file"),
    ):
        raise error
    one_line(caught)


def test_the_disk_and_the_user_are_not_called_a_broken_file(tmp_path):
    with pytest.raises(FileNotFoundError), reading("f.bin", "weights file"):
        open(tmp_path / "none")
    with pytest.raises(KeyboardInterrupt), reading("f.bin", "weights file"):
        raise KeyboardInterrupt


def test_a_lock_that_is_a_link_empties_nothing(tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    (tmp_path / ".lock").symlink_to(tmp_path / "mine.txt")
    with pytest.raises(ZooError, match="is a link"), locked(tmp_path / ".lock"):
        raise AssertionError("the lock was taken")
    assert (tmp_path / "mine.txt").read_text() == "precious"
