"""A mistake in a file is told with the file, the line and the column where the mistake stands."""

from __future__ import annotations

import pytest

from ppl_gen.declare.files import read_spec, shipped_models, write_spec
from ppl_gen.declare.images import image_of
from ppl_gen.declare.notation import MAX_TEXT, NotationError, parse, parse_entry
from ppl_gen.errors import SpecError

# The mistake begins where « stands; the mark is taken out before the text is read.
PLACES = [
    # notation, inside an entry
    ("model:\n  x: Normal(2, «lo=0)\n", "Normal has no option 'lo'"),
    ("model:\n  x: Normal(2, loc=«foo(3))\n", "'foo' is not a word here"),
    (
        "model:\n  x: Normal(2,\n    loc=0,\n    «scal=1)\n",
        "Normal has no option 'scal'; did you mean 'scale'",
    ),
    ("model:\n  x: 'Normal(2, «scal=1)'\n", "Normal has no option 'scal'"),
    ('model:\n  x: "Normal(2,\n     «scal=1)"\n', "Normal has no option 'scal'"),
    ("model:\n  x: |\n    Normal(2,\n      «scal=1)\n", "Normal has no option 'scal'"),
    ("model:\n  x: >-\n    Normal(2, loc=[0, «a.b])\n", "a dot is not in the notation"),
    ('model:\n  x: «"Normal(2, scal=\\"a\\")"\n', "Normal has no option 'scal'"),
    ("model:\r\n  x: Normal(2,\r\n    «scal=1)\r\n", "Normal has no option 'scal'"),
    ("\ufeffmodel:\n  x: Normal(2, «scal=1)\n", "Normal has no option 'scal'"),
    ("model:\n  変数: Normal(2, loc=μ, «scal=1)\n", "Normal has no option 'scal'"),
    ("model:\n  x: Normal«(2\n", "not in the notation: '(' was never closed"),
    ("model:\n  x: Normal(2, «scale=-1)\n", "Normal's scale must be positive, got -1"),
    ("model:\n  x: Normal(2, loc=0, «loc=1)\n", "Normal's loc is written twice"),
    ("model:\n  x: Normal(2, loc=«2 * 3)\n", "an operator other than +"),
    ("model:\n  x: Normal(2, loc=«-z)\n", "a sign before anything but a number"),
    ("model:\n  x: «Normal(2).loc\n", "a dot is not in the notation"),
    ("model:\n  x: Normal(«*z)\n", "* is not in the notation"),
    ("model:\n  x: Normal(2, «**z)\n", "** is not in the notation"),
    ("model:\n  x: «Normal(2)(3)\n", "only a word can stand before a parenthesis"),
    ("model:\n  x: «Normal\n", "'Normal' is a word, not a name; write Normal(...)"),
    ("model:\n  x: Normal(loc=«By)\n", "'By' is a word, not a name; write By(...)"),
    ("model:\n  x: «3\n", "'3' is no node and no term"),
    ("model:\n  x: «yes\n", "'x' refers to 'yes', which is not declared above it"),
    ("model:\n  x: «Normal(2), Normal(3)\n", "a comma outside brackets is not in the notation"),
    # the declaration as a whole, at the word in the entry that is wrong
    ("model:\n  z: Categorical(3)\n  x: Normal(2, loc=By(«c))\n", "'x' refers to 'c'"),
    ("model:\n  x: Normal(2,\n    loc=By(«c))\n", "'x' refers to 'c'"),
    ("model:\n  a: Normal(1, loc=«b)\n  b: Normal(1, loc=a)\n", "'a' refers to 'b' in a cycle: a -> b -> a"),
    ("model:\n  z: Normal(2)\n  x: Normal(loc=By(«z))\n", "'x' needs a category"),
    ("model:\n  z: Normal(1)\n  x: Normal(loc=Linear(z))\nguide:\n  «y: Normal(1)\n", "the guide names 'y'"),
    (
        "model:\n  z: Normal(1)\n  x: Normal(loc=Linear(z))\nguide:\n  z: Normal(loc=«w)\n",
        "'z' in the guide refers",
    ),
    (
        "model:\n  z: Normal(1)\n  x: Normal(loc=Linear(z))\n«guide:\n  h: MLP(x, [2])\n",
        "the guide lacks 'z'",
    ),
    ("model:\n  x: Normal(1)\ncolumns:\n  x: «[a, b]\n", "'x' has 2 columns"),
    ("model:\n  x: Normal(2)\ncolumns:\n  x: [«a, a]\n", "the columns of 'x' name 'a' twice"),
    ("model:\n  x: Normal(2)\ncolumns:\n  «xx: [a, b]\n", "columns name 'xx', which is no node"),
    ("«model:\n  u: Input(1)\n", "a model needs at least one node that is not an Input"),
    ("model:\n  «Normal: Normal(2)\n", "'Normal' is a word of the language"),
    ("model:\n  «a-b: Normal(2)\n", "a name must be a Python identifier"),
    ("model:\n  «<<: Normal(2)\n", "a name must be a Python identifier"),
    # YAML
    (
        "«modle:\n  x: Normal(2)\n",
        "'modle' is no section; did you mean 'model'? sections: model, guide, columns",
    ),
    ("model:\n  x: Normal(2)\n  «x: Normal(3)\n", "'x' is written twice, in line 2 and in line 3"),
    (
        "model:\n  x: Normal(2)\n«model:\n  x: Normal(3)\n",
        "'model' is written twice, in line 1 and in line 3",
    ),
    ("model:\n  x: «&a Normal(2)\n", "an anchor (&) has no meaning here"),
    ("model:\n  x: Normal(2)\n  y: «*a\n", "an alias (*) has no meaning here"),
    ("model:\n  x: «!!python/object/apply:os.system [ls]\n", "a tag (!) has no meaning here"),
    ("model: «!!map\n  x: Normal(2)\n", "a tag (!) has no meaning here"),
    ("model:\n  x: «[Normal(2)]\n", "'x' must be a node or a term in one text, got a list"),
    ("model:\n  x:\n    «k: 3\n", "'x' must be a node or a term in one text, got a map"),
    ("model:\n  «x:\n", "'x' has nothing written after it"),
    ("«model:\n", "model: must have entries below it"),
    ("model: «Normal(2)\n", "model: must have entries below it"),
    ("model:\n  «- Normal(2)\n", "model: must have entries below it"),
    ("model: «{x: Normal(2)}\n", "model: must have its entries below it, one a line, not in braces"),
    ("model:\n  x: Normal(2)\ncolumns: «a\n", "columns: must have entries below it"),
    ("model:\n  x: Normal(2)\ncolumns:\n  x: [«[a]]\n", "the columns of 'x' must be a column's name"),
    ("model:\n  x: Normal(2)\n«---\nmodel:\n  x: Normal(3)\n", "a second document begins here"),
    ("«- model\n", "a declaration begins with model:"),
    ("«guide:\n  z: Normal(2)\n", "the model: section is missing; written: guide"),
    ("«\n", "the file is empty"),
    ("«# only a comment\n", "the file is empty"),
    ("model:\n  x: a«: b\n", "not YAML: mapping values are not allowed here"),
    ("model:\n«\tx: Normal(2)\n", "not YAML: found character '\\t'"),
    ("model:\n  x: «\x07\n", "not YAML: unacceptable character"),
    ("model:\n  ? «[a, b]\n  : Normal(2)\n", "a key must be a name"),
]


@pytest.mark.parametrize(("marked", "message"), PLACES, ids=[repr(m)[:70] for m, _ in PLACES])
def test_a_mistake_is_told_with_its_line_and_column(marked, message, tmp_path):
    before = marked[: marked.index("«")].removeprefix("\ufeff").replace("\r\n", "\n")
    line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
    text = marked.replace("«", "")
    path = tmp_path / "model.yaml"
    path.write_bytes(text.encode())
    for source, label in ((text, "<text>"), (path, str(path))):
        with pytest.raises(SpecError) as caught:
            read_spec(source)
        assert str(caught.value).startswith(f"{label}:{line}:{column}: {message}")


HOSTILE = [
    "-" * 9000 + "1",
    "(" * 9000,
    "[" * 9000,
    "a" + ".a" * 4000,
    "not " * 2000 + "a",
    "lambda: " * 1000 + "a",
    "a if b else " * 800 + "a",
    "By(" * 60 + "z" + ")" * 60,
    "x" * (MAX_TEXT + 1),
    "1" * 5000,
    "0x" + "f" * 9000,
    "__import__('os').system('true')",
    "().__class__.__bases__",
    "[x for x in y]",
    "f'{x}'",
    "b'x'",
    "1j",
    "...",
    "x := 3",
    "x; y",
    "import os",
    "'\\d",
    "\x00",
    "\ud800",
    "",
    "   \n ",
    "await x",
    "*x",
    "{1: 2}",
]


@pytest.mark.parametrize("text", HOSTILE, ids=[repr(t)[:30] for t in HOSTILE])
def test_no_text_gets_past_the_reader_or_brings_it_down(text):
    with pytest.raises(NotationError) as caught:
        parse_entry(text)
    assert len(str(caught.value)) < 1000


def test_a_long_sum_is_read_as_one_flat_sum():
    entry = parse_entry(" + ".join(["By(z)"] * 1000))
    assert len(entry.terms) == 1000


def test_aliases_that_would_expand_to_a_billion_nodes_are_refused_at_the_first():
    laughs = "a: &a [x, x]\n" + "".join(
        f"{chr(98 + i)}: &{chr(98 + i)} [*{chr(97 + i)}, *{chr(97 + i)}]\n" for i in range(24)
    )
    with pytest.raises(SpecError, match=r"^<text>:1:4: an anchor"):
        read_spec(laughs)


def test_lists_nested_by_the_thousand_are_refused_at_the_first_too_deep():
    with pytest.raises(SpecError, match="nested this deeply"):
        read_spec("model:\n  x: " + "[" * 50_000 + "\n")


def test_a_file_too_long_for_a_declaration_is_not_read(tmp_path):
    path = tmp_path / "long.yaml"
    path.write_text("#" * 900_000)
    with pytest.raises(SpecError, match="too long for a declaration"):
        read_spec(path)


def test_a_file_that_is_not_there_or_no_text_is_told_by_its_name(tmp_path):
    with pytest.raises(SpecError, match=r"nowhere\.yaml: cannot be read: No such file"):
        read_spec(tmp_path / "nowhere.yaml")
    with pytest.raises(SpecError, match="is a folder; a declaration is a file in it"):
        read_spec(tmp_path)
    (tmp_path / "bytes.yaml").write_bytes(b"model: \xff\xfe")
    with pytest.raises(SpecError, match=r"not UTF-8 text \(byte 7\)"):
        read_spec(tmp_path / "bytes.yaml")


def test_a_mistyped_shipped_name_is_told_with_the_nearest():
    with pytest.raises(
        SpecError, match="'gausian_mixture' is no file and no shipped model; did you mean 'gaussian_m"
    ):
        read_spec("gausian_mixture")


def test_yaml_that_other_readers_turn_into_numbers_and_booleans_stays_text():
    spec = read_spec(
        "model:\n  no: Normal(1, scale=1e-3)\n  x: Normal(1, loc=no)\ncolumns:\n  x: 2024-01-01\n  no: on\n"
    )
    assert list(spec.model) == ["no", "x"]
    assert spec.columns == {"x": ("2024-01-01",), "no": ("on",)}
    assert spec.model["no"].scale.value == 0.001


def test_the_same_reader_reads_other_words():
    def algorithm(**options):
        return options

    words = {"SVI": algorithm}
    text = "SVI(epochs=20, learning_rate=1e-3, lowering=None, optimizer='adam', compiled=False)"
    assert parse(text, words) == {
        "epochs": 20,
        "learning_rate": 1e-3,
        "lowering": None,
        "optimizer": "adam",
        "compiled": False,
    }
    with pytest.raises(NotationError, match="'EM' is not a word here; the words: SVI"):
        parse("EM()", words)
    with pytest.raises(NotationError) as caught:
        parse("SVI(\n  20)", words)
    assert (caught.value.line, caught.value.column) == (1, 1)


@pytest.mark.parametrize("name", sorted(shipped_models()))
def test_a_shipped_model_is_read_commented_and_written_back_equal(name):
    spec = read_spec(name)
    assert read_spec(write_spec(spec)) == spec
    assert spec.warnings == ()
    lines = shipped_models()[name].read_text(encoding="utf-8").splitlines()
    assert [line.startswith("#") for line in lines[:3]] == [True, True, False]
    observed = spec.roles().observed
    sizes = [spec.nodes[leaf].dim for leaf in observed]
    assert all(size in (None, 1) or image_of(size) for size in sizes)  # they fit any table, or are images


def test_the_models_people_know_are_shipped():
    assert set(shipped_models()) >= {
        "binomial_mixture",
        "exponential_mixture",
        "gamma_mixture",
        "gaussian_mixture",
        "gaussian_mixture_diagonal",
        "gaussian_mixture_spherical",
        "gaussian_mixture_tied",
        "latent_class",
        "latent_class_covariates",
        "log_normal_mixture",
        "mixed_types",
        "mixture_of_experts",
        "negative_binomial_mixture",
        "poisson_mixture",
        "poisson_regression_mixture",
        "regression_mixture",
        "student_t_mixture",
        "student_t_mixture_diagonal",
        "vae",
        "vae_bernoulli",
        "vae_diagonal",
    }
