"""Files of flags: the kit's recipes, and the files that --flagfile names.

A recipe is a file in the folder `recipes`, in the format of --flagfile: one --name=value per line, without the quotes
of a shell. Lines that start with # are comments. The first line of a recipe is a comment that says what it gives.
"""

import glob
import json
import os
import re
from collections.abc import Iterable, Sequence

from absl import flags

RECIPES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "recipes")

# Flags that hold the parameters of a class as JSON, and the flag that names the class.
CLASS_OF_PARAMS = {"model_params": "model", "loss_params": "label_loss", "optimizer_params": "optimizer"}

# An argument such as --image_size=64, and its place in a file; "" if it is from the command line.
Argument = tuple[str, str]


def recipes() -> dict[str, str]:
    """Returns the names of the recipes, each with the line that says what it gives."""
    found = {}
    for path in sorted(glob.glob(os.path.join(glob.escape(RECIPES), "*.flags"))):
        with open(path, encoding="utf-8", errors="replace") as file:
            found[os.path.basename(path).removesuffix(".flags")] = file.readline().lstrip("#").strip()
    return found


def read_recipe(name: str) -> dict[str, str]:
    """Returns what a recipe sets: the text of each value by the name of its flag; {} for "".

    Raises:
        flags.Error: if a line of its file is not --name=value.
    """
    return {argument[2:].partition("=")[0]: argument.partition("=")[2] for argument, _ in _recipe_arguments(name)}


def _recipe_arguments(name: str) -> list[Argument]:
    if not name:
        return []
    arguments = _read(os.path.join(RECIPES, f"{name}.flags"))
    for argument, place in arguments:
        if not re.match(r"--(?!recipe=|flagfile=)\w+=", argument):
            raise flags.Error(f"{place}: {argument}: each line of a recipe sets one flag, --name=value")
    return arguments


def _read(path: str) -> list[Argument]:
    """Returns the lines of a file of flags without the comments, each with its place.

    Raises:
        flags.Error: if it cannot be read.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            lines = [(line.strip(), f"{path} line {number}") for number, line in enumerate(file, start=1)]
    except (OSError, ValueError) as error:  # ValueError: not UTF-8.
        reason = error.strerror if isinstance(error, OSError) else "is not text in UTF-8"
        raise flags.Error(f"--flagfile={path}: {reason}; name a text file with one --name=value in a line") from error
    return [line for line in lines if line[0] and not line[0].startswith(("#", "//"))]


def read_arguments(texts: Iterable[str], has_recipe: bool) -> list[Argument]:
    """Returns the arguments of a command line and of the files that its --flagfile and --recipe name.

    The recipe's come first, so every other argument overrides them, wherever it stands.

    Args:
        texts: the command line without the program's name.
        has_recipe: whether the script has the flag --recipe.

    Raises:
        flags.Error: if a file cannot be read, or is wrong.
    """
    arguments = _expand((text, "") for text in texts)
    recipe = _recipe_in(arguments) if has_recipe else ""
    if recipe and recipe not in recipes():
        return [(f"--recipe={recipe}", "")]  # Its validator reports this. Other errors would only follow from it.
    return [*_recipe_arguments(recipe), *arguments]


def _expand(arguments: Iterable[Argument], opened: Sequence[str] = ()) -> list[Argument]:
    """Replaces each --flagfile with the lines of its file, as absl does, and notes the place of each line.

    Args:
        arguments: those of a command line or of a file.
        opened: the files that led to these arguments, to find a file that includes itself.
    """
    expanded, rest = [], iter(arguments)
    for argument, place in rest:
        if argument == "--":  # No flags follow.
            return [*expanded, (argument, place), *rest]
        found = re.fullmatch(r"--?flagfile(?:=(.*))?", argument, re.DOTALL)
        if not found:
            expanded.append((argument, place))
            continue
        path = os.path.expanduser(next(rest, ("", ""))[0] if found[1] is None else found[1])
        if path in opened:
            raise flags.Error(f"{place}: --flagfile={path}: the file leads to itself")
        expanded += _expand(_read(path), (*opened, path))
    return expanded


def _recipe_in(arguments: Sequence[Argument]) -> str:
    """Returns the last --recipe among arguments; "" without one."""
    name, texts = "", [text for text, _ in arguments]
    for text, following in zip(texts, [*texts, ""][1:], strict=True):
        if text == "--":
            break
        flag, equals, value = text.partition("=")
        if flag in ("--recipe", "-recipe"):
            name = value if equals else following
    return name


def merge_params(flag_values: flags.FlagValues) -> None:
    """Merges the parameters of classes (model_params and so on) key by key with those of the recipe.

    The recipe's parameters are dropped if the user names another class, or passes an empty flag.

    Args:
        flag_values: the parsed flags.

    Raises:
        flags.Error: if the recipe's parameters are not a JSON object.
    """
    recipe = read_recipe(flag_values.recipe)
    for params, named_by in CLASS_OF_PARAMS.items():
        if params not in recipe:
            continue
        flag, class_flag = flag_values[params], flag_values[named_by]
        is_given = flag.present > 1  # The recipe gives it once.
        if class_flag.value != recipe.get(named_by, class_flag.default):
            flag.value = flag.value if is_given else ""
        elif is_given and flag.value:
            try:  # A validator has checked the user's value, but not the recipe's.
                merged = dict(json.loads(recipe[params])) | json.loads(flag.value)
            except (TypeError, ValueError) as error:
                raise flags.Error(f"--{params}={recipe[params]} in the recipe: expected a JSON object") from error
            flag.value = json.dumps(merged)


def place_of(names: Iterable[str], arguments: Sequence[Argument]) -> str:
    """Returns which lines of files set some flags, such as "my.flags line 3: ".

    Args:
        names: the flags, or words that are not flags.
        arguments: see `read_arguments`.

    Returns:
        "" if the command line itself sets them.
    """
    found = []
    for name in names:
        forms = (name, f"-{name}", f"--{name}", f"--no{name}")
        setting = [one for one in arguments if one[0] in forms or one[0].partition("=")[0] in forms]
        for text, place in setting[-1:]:  # The last one wins.
            quoted = re.search("=([\"']).*\\1$", text)
            found += [f"{place} (no quotes around values here)" if quoted else place] if place else []
    return f"{', '.join(dict.fromkeys(found))}: " if found else ""


def describe(flag_values: flags.FlagValues) -> str:
    """Returns a line that says what the recipe set, and what the command line changed of it; "" without a recipe."""
    name = flag_values.recipe
    same, changed = [], []
    for flag_name, text in read_recipe(name).items():
        flag = flag_values[flag_name]
        if flag.value == flag.parser.parse(text):
            same.append(f"{flag_name}={text}")
        else:
            value = "none" if flag.value in ("", None) else flag.value
            changed.append(f"{flag_name}={value} (recipe: {text})")
    line = f"Recipe {name}: {', '.join(same)}."
    return f"{line} Changed by the command line: {', '.join(changed)}." if changed else line
