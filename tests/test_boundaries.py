"""Who may import whom. What is data-free is so because it cannot reach the data."""

import ast
import pathlib
from collections.abc import Iterator

import pytest

import dfkd_jax
from dfkd_jax import config
from dfkd_jax.methods import registry

PACKAGE = pathlib.Path(dfkd_jax.__file__).parent
STAGES = ("targets", "synthesis", "distillation", "teachers")
DATA_FREE = ("targets", "synthesis", "distillation", "methods", "baselines")
REAL_DATA = "baselines.real_data"
# Who may get real images, besides: evaluation and teacher training, and who asks them.
READERS = {
    "api",
    "data",
    "evaluate",
    "evaluation",
    "export",
    "exporting",
    "inspect",
    "inspection",
    "main",
    "neighbors",
    "pipeline",
    "sweep",
    "teachers.pipeline",
    "verify",
    REAL_DATA,
}
DEVICES = {
    "pmap",
    "shard_map",
    "process_index",
    "process_count",
    "local_devices",
    "Mesh",
    "NamedSharding",
    "pmean",
    "psum",
    "axis_index",
}
FILES_AND_SETTINGS = {
    "absl",
    "argparse",
    "io",
    "json",
    "ml_collections",
    "os",
    "pathlib",
    "shutil",
    "tempfile",
    "dfkd_jax.command_line",
    "dfkd_jax.config",
    "dfkd_jax.runtime.checkpoints",
    "dfkd_jax.runtime.files",
    "dfkd_jax.runtime.weights",
    "dfkd_jax.runtime.workdir",
    "dfkd_jax.runtime.writers",
}


class Imports:
    """The import graph of a package, from its source alone."""

    def __init__(self, root: pathlib.Path):
        self.trees = {
            ".".join(path.relative_to(root.parent).with_suffix("").parts).removesuffix(
                ".__init__"
            ): ast.parse(path.read_text())
            for path in sorted(root.rglob("*.py"))
        }
        self.packages = {
            ".".join(path.parent.relative_to(root.parent).parts)
            for path in root.rglob("__init__.py")
        }

    def direct(self, module: str, *, on_import: bool = False) -> set[str]:
        """What a module imports; `on_import` leaves out what functions import.

        So it is of the package itself, which everything in it imports: its public names
        are had by asking for them.
        """
        found = set()
        on_import = on_import or "." not in module
        for node in _walk(self.trees[module], into_functions=not on_import):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                source = self._source(module, node)
                found.add(source)
                # A name that is imported may be a module.
                names = {f"{source}.{alias.name}" for alias in node.names}
                found |= names & self.trees.keys()
        # Importing a.b runs a too.
        parents = {
            ".".join(name.split(".")[:count])
            for name in found
            for count in range(1, name.count(".") + 1)
        }
        return found | parents

    def _source(self, module: str, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module
        up = node.level - (module in self.packages)
        parts = module.split(".")[: len(module.split(".")) - up]
        return ".".join(parts + ([node.module] if node.module else []))

    def reached(self, module: str, *, on_import: bool = False) -> set[str]:
        """What a module imports directly or through others of the package."""
        found: set[str] = set()
        waiting = [module]
        while waiting:
            new = self.direct(waiting.pop(), on_import=on_import) - found
            found |= new
            waiting += new & self.trees.keys()
        return found

    def under(self, folder: str) -> list[str]:
        """The modules of a folder."""
        return [
            name
            for name in self.trees
            if name == folder or name.startswith(folder + ".")
        ]

    def names(self, module: str) -> set[str]:
        """All names and attributes in a module's code."""
        return {
            getattr(node, field)
            for node in ast.walk(self.trees[module])
            for kind, field in (
                (ast.Name, "id"),
                (ast.Attribute, "attr"),
                (ast.alias, "name"),
            )
            if isinstance(node, kind)
        }


def _walk(node: ast.AST, *, into_functions: bool) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        function = isinstance(
            child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
        )
        if into_functions or not function:
            yield child
            yield from _walk(child, into_functions=into_functions)


def violations(imports, modules, forbidden, *, direct=False, on_import=False):
    """`module → forbidden module` for whatever must not be reached."""
    reach = imports.direct if direct else imports.reached
    return [
        f"{module} → {name}"
        for module in modules
        for name in sorted(reach(module, on_import=on_import))
        if any(name == bad or name.startswith(bad + ".") for bad in forbidden)
    ]


def data_free(imports, package):
    modules = [m for s in DATA_FREE for m in imports.under(f"{package}.{s}")]
    modules = set(modules) - set(imports.under(f"{package}.{REAL_DATA}"))
    forbidden = [f"{package}.data", "tensorflow", "tensorflow_datasets"]
    return violations(imports, modules, forbidden)


@pytest.fixture(scope="module")
def imports():
    return Imports(PACKAGE)


@pytest.fixture(scope="module")
def pure(imports):
    """Modules of arrays in, arrays out."""
    names = {"losses", "step", "augment", "priors", "parameterization"}
    folders = (*STAGES, "baselines")
    stages = [m for folder in folders for m in imports.under(f"dfkd_jax.{folder}")]
    return [
        *imports.under("dfkd_jax.models"),
        *imports.under("dfkd_jax.targets"),
        *[module for module in stages if module.split(".")[-1] in names],
    ]


def test_what_is_data_free_never_reaches_the_data(imports):
    assert data_free(imports, "dfkd_jax") == []


def test_who_gets_real_images(imports):
    readers = {m for name in READERS for m in imports.under(f"dfkd_jax.{name}")}
    reading = {
        module
        for module in imports.trees
        if {"dfkd_jax.data.tfds", "dfkd_jax.data.held_out"} & imports.reached(module)
    }
    assert reading <= readers
    assert f"dfkd_jax.{REAL_DATA}.images" in reading
    assert f"dfkd_jax.{REAL_DATA}.metadata" in reading


def test_only_baselines_on_real_data_know_each_other(imports):
    own = imports.under(f"dfkd_jax.{REAL_DATA}")
    others = [module for module in imports.trees if module not in own]
    assert violations(imports, others, [f"dfkd_jax.{REAL_DATA}"], direct=True) == []


@pytest.mark.parametrize("kind", [kind for kind in config.KINDS if kind != "teacher"])
def test_the_kind_of_config_says_whether_real_data_is_read(imports, kind):
    module = registry.METHODS[kind]
    assert module in imports.trees
    reads = config.KINDS[kind].reads_real_data
    assert reads == module.startswith(f"dfkd_jax.{REAL_DATA}.")
    assert {"check", "make_student"} <= _functions(imports.trees[module])
    assert reads == ("real_data" in _functions(imports.trees[module]))


def _functions(tree):
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_pure_modules_know_no_files_and_no_settings(imports, pure):
    assert len(pure) > 15
    assert violations(imports, pure, FILES_AND_SETTINGS, direct=True) == []
    through_others = {
        "absl",
        "ml_collections",
        "dfkd_jax.config",
        "dfkd_jax.runtime.files",
    }
    assert violations(imports, pure, through_others) == []


def test_a_stage_knows_no_other_stage(imports):
    found = [
        violation
        for stage in STAGES
        for violation in violations(
            imports,
            imports.under(f"dfkd_jax.{stage}"),
            [f"dfkd_jax.{other}" for other in STAGES if other != stage],
        )
    ]
    assert found == []


@pytest.mark.parametrize("folder", ["models", "runtime"])
def test_what_all_stages_use_knows_no_stage(imports, folder):
    forbidden = [
        f"dfkd_jax.{name}"
        for name in (
            *STAGES,
            "methods",
            "baselines",
            "data",
            "reporting",
            "config",
            "pipeline",
            "evaluate",
            "evaluation",
        )
    ]
    modules = imports.under(f"dfkd_jax.{folder}")
    assert len(modules) > 3
    assert violations(imports, modules, forbidden) == []


def test_one_module_says_pmap(imports):
    saying = {module for module in imports.trees if imports.names(module) & DEVICES}
    # Checkpoints are read onto the first device.
    assert saying - {"dfkd_jax.runtime.checkpoints"} == {"dfkd_jax.runtime.parallel"}
    assert "pmap" in imports.names("dfkd_jax.runtime.parallel")
    assert imports.names("dfkd_jax.runtime.checkpoints") & DEVICES <= {"local_devices"}


def test_one_module_reaches_behind_the_public_names_of_jax(imports):
    importing = {
        m for m in imports.trees if violations(imports, [m], ["jax._src"], direct=True)
    }
    assert importing == {"dfkd_jax.runtime.hosts"}


def test_one_module_looks_into_jaxprs(imports):
    """By `jax.extend`, which promises nothing between releases."""
    importing = {
        m
        for m in imports.trees
        if violations(imports, [m], ["jax.extend"], direct=True)
    }
    assert importing == {"dfkd_jax.models.jaxprs"}


def test_one_module_says_orbax(imports):
    importing = {
        m for m in imports.trees if violations(imports, [m], ["orbax"], direct=True)
    }
    assert importing == {"dfkd_jax.runtime.checkpoints"}


def test_flags_are_read_by_commands_alone(imports):
    commands = {"main", "evaluate", "inspect", "export", "report", "verify"}
    commands |= {"sweep", "sweeps.plan"}
    commands |= {"neighbors", "command_line", "config_files"}
    importing = {
        m for m in imports.trees if violations(imports, [m], ["absl"], direct=True)
    }
    assert importing <= {f"dfkd_jax.{command}" for command in commands}
    assert "dfkd_jax.main" in importing


@pytest.mark.parametrize(
    "module",
    [
        "config",
        "main",
        "evaluate",
        "evaluation",
        "inspect",
        "inspection",
        "report",
        "export",
        "sweep",
        "sweeps.child",
        "verify",
        "neighbors",
        "json_settings",
        "command_line",
        "config_files",
        "settings",
        "errors",
        "models.registry",
    ],
)
def test_no_jax_before_the_settings_are_checked(imports, module):
    forbidden = ["jax", "flax", "optax", "orbax", "jaxtyping", "tensorflow"]
    assert violations(imports, [f"dfkd_jax.{module}"], forbidden, on_import=True) == []


def test_reports_ask_no_teacher_and_read_no_real_data(imports):
    forbidden = ["flax", "safetensors", "tensorflow", "tensorflow_datasets"]
    forbidden += ["dfkd_jax.data.tfds", "dfkd_jax.teachers", "dfkd_jax.models.layers"]
    modules = ["dfkd_jax.report", "dfkd_jax.reporting.pages"]
    assert "dfkd_jax.reporting.run_files" in imports.reached("dfkd_jax.report")
    assert violations(imports, modules, forbidden) == []
    assert violations(imports, modules, ["jax"], on_import=True) == []


def test_nothing_that_is_read_can_run_code(imports):
    """But for PyTorch's files, by a reader that imports no name that they have."""
    runners = ["pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "yaml"]
    found = violations(imports, list(imports.trees), runners, direct=True)
    assert found == ["dfkd_jax.teachers.torch_files → pickle"]
    saying = {m for m in imports.trees if imports.names(m) & {"Unpickler", "loads"}}
    saying.remove("dfkd_jax.teachers.torch_files")  # tests/teachers/test_pytorch_logits
    assert all("json" in imports.direct(module) for module in saying)
    calls = [
        (module, call)
        for module, tree in imports.trees.items()
        for call in ast.walk(tree)
        if isinstance(call, ast.Call)
    ]
    assert not [m for m, c in calls if getattr(c.func, "id", "") in ("eval", "exec")]
    loads = {ast.unparse(call) for _, call in calls if "load(" in ast.unparse(call)}
    of_numpy = {text for text in loads if text.startswith("np.load(")}
    assert of_numpy
    assert all("allow_pickle=False" in text for text in of_numpy)
    of_torch = {text for text in loads if text.startswith("torch.load(")}
    assert len(of_torch) == 2
    assert all("weights_only=True" in t or "pickle_module=" in t for t in of_torch)


@pytest.mark.parametrize(
    ("source", "chain"),
    [
        ("import toy.data.real", "toy.data.real"),
        ("from toy.data import real", "toy.data.real"),
        ("from toy import helper", "toy.data"),
        ("from ..data.real import load", "toy.data.real"),
        ("from .. import helper", "toy.data"),
        ("def f():\n    from toy import data", "toy.data"),
        ("from toy.wide import anything", "toy.data"),
        ("import tensorflow_datasets as tfds", "tensorflow_datasets"),
    ],
)
def test_violations_are_found(tmp_path, source, chain):
    """The walk above would fail if there were something to find."""
    files = {
        "__init__.py": "",
        "data/__init__.py": "",
        "data/real.py": "",
        "helper.py": "class A:\n    def f(self):\n        from toy import data",
        "wide/__init__.py": "from . import narrow",
        "wide/narrow.py": "import toy.data",
        "synthesis/__init__.py": "",
        "synthesis/step.py": source,
        "synthesis/losses.py": "import jax\nfrom toy.synthesis import priors",
        "synthesis/priors.py": "from . import losses",
    }
    for name, text in files.items():
        path = tmp_path / "toy" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    found = data_free(Imports(tmp_path / "toy"), "toy")
    assert f"toy.synthesis.step → {chain}" in found
    assert not any("losses" in line or "priors" in line for line in found)
