"""Recipes and --flagfile: what they set, what wins, and what is said of a mistake in a file."""

import json
import re
import sys

import pytest
from absl import flags
from conftest import PAGES, REPOSITORY, blocks, write_shards
from test_layout import run_without_heavy_imports
from test_readmes import words_of

from cats_vs_dogs import advice, config, distribution, flag_files, job, train_dir, utils

RECIPES = list(flag_files.recipes())


@pytest.fixture
def read(monkeypatch):
    """Returns a function that reads a command line as train.py does, and returns the settings."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
        utils.read_flags(config.define_flags)
        return config.read(flags.FLAGS).settings()

    yield run
    run()  # Other tests get the defaults.


@pytest.fixture
def fails(read, capsys):
    """Returns a function that reads a wrong command line and returns the one line that is said."""

    def run(*arguments):
        with pytest.raises(SystemExit) as end:
            read(*arguments)
        said = capsys.readouterr().err
        assert end.value.code == 1 and said.count("\n") == 1
        return said

    return run


@pytest.fixture
def recipe(monkeypatch, tmp_path):
    """Returns a function that makes the recipe "mine", the only one, of some lines, and returns its path."""
    monkeypatch.setattr(flag_files, "RECIPES", str(tmp_path))

    def write(*lines):
        (tmp_path / "mine.flags").write_text("\n".join(["# A recipe of mine.", *lines]))
        return tmp_path / "mine.flags"

    return write


# ---- The kit's recipes.


def test_there_are_recipes():
    assert {"quick", "good", "best", "pretrained", "pretrained_best"} <= set(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_sets_flags_of_train_and_says_what_it_gives(read, name):
    given, settings = flag_files.read_recipe(name), read(f"--recipe={name}")
    assert settings["recipe"] == name and set(given) <= set(settings)
    assert not set(given) & {"train_dir", "train_data_pattern", "eval_data_pattern", "seed", "start_new_model"}
    for flag, text in given.items():
        assert settings[flag] == (
            json.loads(text) if flag.endswith("_params") else flags.FLAGS[flag].parser.parse(text)
        )
    others = set(settings) - {"recipe", *given}
    defaults = read()
    assert {flag: settings[flag] for flag in others} == {flag: defaults[flag] for flag in others}
    assert re.fullmatch(r"\w.*\.", flag_files.recipes()[name])
    # The format of --flagfile is the same.
    assert read(f"--flagfile={flag_files.RECIPES}/{name}.flags") == settings | {"recipe": ""}


def test_without_a_recipe_the_flags_are_those_of_2017(read):
    settings = read()
    assert settings["recipe"] == "" and settings["model"] == "LogisticModel" and settings["batch_size"] == 512
    assert settings == read("--recipe=")


@pytest.mark.parametrize("name", ["docs/recipes.md", "docs/recipes.en.md"])
def test_the_page_has_a_row_for_each_recipe_and_repeats_no_flags(name):
    rows = re.findall(r"^\| \[`(\w+)`\]\(\.\./cats_vs_dogs/recipes/(\w+)\.flags\)", PAGES[name], re.MULTILINE)
    assert sorted(rows) == [(one, one) for one in RECIPES]
    for page in (name, name.replace("recipes", "flags"), name.replace("docs/recipes", "README")):
        for one in RECIPES:
            assert flag_files.read_recipe(one).items() - set(re.findall(r"--(\w+)='?([^\s']+)", PAGES[page]))


@pytest.mark.parametrize("name", ["docs/flags.md", "docs/flags.en.md"])
def test_the_page_of_flags_names_each_recipe(name):
    row = re.search(r"^\| `--recipe` .*", PAGES[name], re.MULTILINE)[0]
    assert set(re.findall(r"`(\w+)`", row)) == set(RECIPES)


def test_recipes_can_be_typed(read, tmp_path):
    """The training commands of the pages that are not run: each is looked at up to its first step."""
    text = "".join("".join(blocks(PAGES[name], "")) for name in ("README.en.md", "docs/recipes.en.md"))
    commands = list(dict.fromkeys(line for line in text.splitlines() if "/train.py " in line))
    assert len(commands) == 4
    pattern = write_shards(tmp_path, num_examples=4, num_shards=1)
    for command in commands:
        assert " --train_dir=/tmp/" in command
        script, arguments = words_of(command.replace("/tmp/", f"{tmp_path}/"))
        assert script == "train"
        read(*arguments, f"--train_data_pattern={pattern}")
        job.look(config.read(flags.FLAGS), distribution.local_devices())


@pytest.mark.slow
def test_a_recipe_trains(run_script, tmp_path):
    """One step of small pictures, without weights that would be downloaded.

    The recipe is the one that uses most of the kit: a frozen part, and layers of it that learn.
    """
    pattern, recipe = write_shards(tmp_path, num_examples=4, num_shards=1), flag_files.read_recipe("pretrained_best")
    params = json.loads(recipe["model_params"]) | {"weights": None}
    small = ("--image_size=32", '--model_params={"weights": null}', "--max_steps=1")
    where = (f"--train_data_pattern={pattern}", f"--train_dir={tmp_path}/m")
    process = run_script("train", *where, *small, "--recipe=pretrained_best")
    assert "Recipe pretrained_best: model=" in process.stderr
    run = json.loads((tmp_path / "m" / "run.json").read_text())
    assert run["flags"]["recipe"] == "pretrained_best" and run["flags"]["model"] == recipe["model"]
    assert run["flags"]["model_params"] == params and str(run["flags"]["num_epochs"]) == recipe["num_epochs"]


# ---- What wins.


def test_flags_of_the_command_line_win_wherever_they_stand(read, recipe, tmp_path):
    recipe("--batch_size=64", "--augment=flip", "--first_image_size=64", "--image_size=128", "--deterministic=true")
    (tmp_path / "more").write_text("--augment=flip_crop\n--recipe=mine\n")
    for arguments in (
        ("--recipe=mine", "--batch_size=8", "--nodeterministic"),
        ("--batch_size", "8", "--nodeterministic", "-recipe", "mine"),
        ("--batch_size=8", "--recipe=none", "--recipe=mine", "--deterministic=false"),
    ):
        settings = read(*arguments)
        assert settings["batch_size"] == 8 and settings["augment"] == "flip" and not settings["deterministic"]
        assert settings["first_image_size"] == 64 and settings["recipe"] == "mine"
    settings = read("--batch_size=8", f"--flagfile={tmp_path}/more")
    assert (settings["batch_size"], settings["augment"], settings["image_size"]) == (8, "flip_crop", 128)
    assert read("--recipe=mine", "--first_image_size=96")["first_image_size"] == 96  # Right only with the recipe.


MODEL, SCHEDULE = "--model=MoeModel", '--model_params={"num_mixtures": 4, "l2_penalty": 0.1}'


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], {"num_mixtures": 4, "l2_penalty": 0.1}),
        (['--model_params={"num_mixtures": 8}'], {"num_mixtures": 8, "l2_penalty": 0.1}),
        (['--model_params={"other": null}'], {"num_mixtures": 4, "l2_penalty": 0.1, "other": None}),
        (["--model_params={}"], {"num_mixtures": 4, "l2_penalty": 0.1}),
        (["--model_params="], {}),
        (["--model=MoeModel", '--model_params={"num_mixtures": 8}'], {"num_mixtures": 8, "l2_penalty": 0.1}),
        (["--model=LogisticModel"], {}),
        (["--model=LogisticModel", '--model_params={"l2_penalty": 1}'], {"l2_penalty": 1}),
    ],
)
def test_parameters_are_merged_key_by_key_unless_they_are_another_models(read, recipe, arguments, expected):
    recipe(MODEL, SCHEDULE)
    assert read("--recipe=mine", *arguments)["model_params"] == expected
    assert read(*arguments, "--recipe=mine")["model_params"] == expected


def test_parameters_of_a_class_that_is_the_default(read, recipe):
    recipe('--optimizer_params={"epsilon": 0.1}', '--loss_params={"b": 3}')
    assert read("--recipe=mine", '--optimizer_params={"beta_1": 0.8}')["optimizer_params"] == {
        "epsilon": 0.1,
        "beta_1": 0.8,
    }
    settings = read("--recipe=mine", "--optimizer=SGD", "--label_loss=HingeLoss")
    assert settings["optimizer_params"] == settings["loss_params"] == {}


def test_the_log_says_what_the_recipe_set_and_what_was_changed(read, recipe):
    recipe(MODEL, SCHEDULE, "--batch_size=64", "--augment=flip")
    read("--recipe=mine", "--seed=3")
    assert flag_files.describe(flags.FLAGS) == (
        'Recipe mine: model=MoeModel, model_params={"num_mixtures": 4, "l2_penalty": 0.1}, batch_size=64, augment=flip.'
    )
    read("--recipe=mine", "--batch_size=64", "--augment=none", '--model_params={"num_mixtures": 8}')
    assert flag_files.describe(flags.FLAGS) == (
        "Recipe mine: model=MoeModel, batch_size=64. Changed by the command line: "
        'model_params={"num_mixtures": 8, "l2_penalty": 0.1} (recipe: {"num_mixtures": 4, "l2_penalty": 0.1}), '
        "augment=none (recipe: flip)."
    )
    read("--recipe=mine", "--model=LogisticModel")
    assert "model_params=none (recipe: {" in flag_files.describe(flags.FLAGS)


# ---- What is said of mistakes.


@pytest.mark.parametrize("argument", ["--recipe=godo", "--flagfile=/nowhere"])
def test_it_is_said_before_tensorflow_is_imported(argument):
    process = run_without_heavy_imports("train", argument)
    assert process.returncode == 1 and process.stderr.startswith(f"error: {argument}: "), process.stderr
    assert process.stderr.count("\n") == 1


def test_a_wrong_name_is_answered_with_the_right_one(fails):
    said = fails("--recipe=godo", "--first_image_size=64")  # Without the recipe, that is wrong, too.
    assert said.startswith("error: --recipe=godo: no such recipe; did you mean good? available: best, good, ")
    assert "first_image_size" not in said
    assert "no such recipe; available: " in fails("--recipe=../recipes/good")
    assert fails("--recipe").startswith("error: Missing value for flag --recipe")


MISTAKES = {
    "--imgsz=3": "Unknown command line flag 'imgsz'; did you mean --image_size?",
    "--optimizer=Adm": "--optimizer=Adm: no such optimizer; did you mean Adam?",
    "--image_size=x": "--image_size=x: ",
    "--model_params=[1]": "--model_params=[1]: expected a JSON object",
    "--base_learning_rate=nan": "--base_learning_rate=nan: must be a finite number",
    "--first_image_size=64": "flags first_image_size=64, image_size=32: pictures grow",
}


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_in_a_file_names_the_file_and_the_line(fails, recipe, tmp_path, line):
    path = recipe("--augment=flip", line)
    (tmp_path / "outer").write_text(f"// A comment.\n\n--flagfile={path}\n")
    for argument in ("--recipe=mine", f"--flagfile={path}", f"--flagfile={tmp_path}/outer"):
        assert fails(argument).startswith(f"error: {path} line 3: {MISTAKES[line]}"), line
    (tmp_path / "later").write_text("--num_epochs=0\n")
    assert fails("--recipe=mine", f"--flagfile={tmp_path}/later")  # Two mistakes are one line.
    assert str(path) not in fails(f"--flagfile={path}", line)  # The last one is that of the command line.


def test_lines_that_are_no_flags(fails, recipe, tmp_path):
    for line in ("--image_size 32", "image_size=32", "--nodeterministic", "--flagfile=x", "--recipe=good"):
        path = recipe(line)
        assert fails("--recipe=mine").startswith(f"error: {path} line 2: {line}: each line of a recipe sets one flag")
    other = tmp_path / "other.txt"
    for line, said in {
        "image_size=32": "image_size=32: not a flag; did you mean --image_size=32?",
        "--image_size 32": "Unknown command line flag 'image_size 32'; did you mean --image_size?",
    }.items():
        other.write_text(line)
        assert fails(f"--flagfile={other}").startswith(f"error: {other} line 1: {said}")
    other.write_text("--model_params='{\"a\": 1}'")
    assert fails(f"--flagfile={other}").startswith(f"error: {other} line 1 (no quotes around values here): ")


def test_parameters_of_a_recipe_that_are_no_json(fails, recipe):
    recipe("--model_params=[1]")
    said = fails("--recipe=mine", '--model_params={"a": 1}')
    assert said.startswith("error: --model_params=[1] in the recipe: expected a JSON object")


def test_files_that_cannot_be_read(fails, tmp_path):
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    (tmp_path / "loop").write_text(f"--flagfile={tmp_path}/loop")
    assert "No such file or directory; name a text file" in fails(f"--flagfile={tmp_path}/gone")
    assert "Is a directory" in fails(f"--flagfile={tmp_path}")
    assert "is not text in UTF-8" in fails(f"--flagfile={tmp_path}/binary")
    assert f"{tmp_path}/loop line 1: --flagfile={tmp_path}/loop: the file leads to itself" in fails(
        f"--flagfile={tmp_path}/loop"
    )


def test_a_file_as_an_editor_saves_it(read, tmp_path):
    (tmp_path / "mine").write_bytes("\ufeff# 학습\r\n  --train_dir=/tmp/고양이 1 \r\n\r\n--batch_size=8".encode())
    settings = read(f"--flagfile={tmp_path}/mine")
    assert settings["train_dir"] == "/tmp/고양이 1" and settings["batch_size"] == 8


# ---- Who is told of recipes.


def metrics(right_cats, wrong_cats, right_dogs, wrong_dogs):
    confusion = {
        "cats_as_cats": right_cats,
        "cats_as_dogs": wrong_cats,
        "dogs_as_dogs": right_dogs,
        "dogs_as_cats": wrong_dogs,
    }
    return {"confusion": confusion, "avg_hit_at_one": (right_cats + right_dogs) / sum(confusion.values())}


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ((141, 109, 150, 100), True),  # LogisticModel on photos: 58 %.
        ((160, 90, 158, 92), True),
        ((200, 50, 199, 51), False),  # LogisticModel on the sample set: 80 %.
        ((170, 80, 170, 80), False),
        ((0, 250, 250, 0), True),
        ((20, 29, 25, 25), False),  # Few examples.
        ((0, 30, 170, 0), False),  # Unequal classes: chance and balance say more than the model.
        ((30, 90, 170, 10), True),  # 67 %, where the larger class has 60 %.
        ((0, 0, 100, 100), False),  # One class.
    ],
)
def test_who_is_told_of_recipes(counts, expected):
    assert advice.is_poor(metrics(*counts)) == expected


def test_a_poor_model_is_answered_with_the_recipes_unless_it_is_made_with_one(tmp_path, caplog):
    (tmp_path / "best").mkdir()
    for run in ({}, {"flags": {"recipe": ""}}, {"flags": {"recipe": "quick"}}):
        train_dir.save_record(str(tmp_path), run)
        with caplog.at_level("INFO", logger="absl"):
            advice.log_recipes(metrics(141, 109, 150, 100), str(tmp_path))
            advice.log_recipes(metrics(141, 109, 150, 100), str(tmp_path / "best"))
            advice.log_recipes(metrics(240, 10, 240, 10), str(tmp_path))
    assert (
        caplog.messages
        == [
            "Hardly better than the answer cat for every picture: accuracy 0.582 instead of 0.500. Recipes for better "
            f"models: train.py --recipe=NAME, with {' or '.join(RECIPES)} as NAME."
        ]
        * 4
    )
    (tmp_path / "run.json").write_text("{")
    advice.log_recipes(metrics(141, 109, 150, 100), str(tmp_path))


@pytest.mark.slow
def test_eval_and_the_end_of_training_name_the_recipes(run_script, tmp_path):
    pattern = write_shards(tmp_path, num_examples=120, num_shards=1)
    where = ("--train_dir", tmp_path / "m", "--noreport")
    trained = run_script(
        "train", *where, f"--train_data_pattern={pattern}", f"--eval_data_pattern={pattern}", "--base_learning_rate=0"
    )
    evaluated = run_script("eval", *where, "--run_once", f"--eval_data_pattern={pattern}")
    for process in (trained, evaluated):
        assert process.stderr.count("train.py --recipe=NAME") == 1


def test_a_changed_recipe_is_no_change_but_for_its_flags(read, recipe, tmp_path, caplog):
    recipe("--batch_size=64")
    read("--recipe=mine")
    record = train_dir.make_record(config.read(flags.FLAGS), {}, 1, 1, 1)
    train_dir.save_record(str(tmp_path), record)
    assert record["flags"]["recipe"] == "mine" and record["flags"]["batch_size"] == 64
    read("--batch_size=64")
    train_dir.warn_of_changes(str(tmp_path), train_dir.make_record(config.read(flags.FLAGS), {}, 1, 1, 1))
    assert not caplog.messages
    recipe("--batch_size=32")
    read("--recipe=mine")
    train_dir.warn_of_changes(str(tmp_path), train_dir.make_record(config.read(flags.FLAGS), {}, 1, 1, 1))
    assert "batch_size=64 (now 32)" in caplog.text and "recipe=" not in caplog.text


def test_the_folder_has_nothing_but_recipes():
    assert {path.name for path in (REPOSITORY / "cats_vs_dogs" / "recipes").iterdir()} == {
        f"{name}.flags" for name in RECIPES
    }
