"""What the user reads when CUDA rendering cannot work here: one sentence per lack, and the announcement of a compilation."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clm.errors import ClmError
from clm.render import cuda_check

READY: dict[str, Callable[..., Any]] = {
    "_torch_versions": lambda: ("2.11.0+cu130", "13.0"),
    "_device": lambda: ("A GPU", 24 * 2**30),
    "_version": lambda package: {"gsplat": "1.5.3", "packaging": "24.0"}[package],
    "_comes_compiled": lambda: False,
    "_is_cached": lambda: True,
    "_find_nvcc": lambda: ("/cuda/bin/nvcc", ["PATH"]),
    "_nvcc_version": lambda nvcc: "13.0",
    "ninja_folder": lambda: "",
}


def answer(monkeypatch: pytest.MonkeyPatch, **answers: Callable[..., Any]) -> None:
    """This machine is a ready one but for `answers`; a C++ compiler is always there."""
    for name, value in {**READY, **answers}.items():
        monkeypatch.setattr(cuda_check, name, value)
    if "CXX" not in answers:
        monkeypatch.setenv("CXX", sys.executable)


def test_a_ready_machine_yields_its_facts(monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch)
    facts = cuda_check.check_cuda()
    assert (facts.device, facts.device_bytes, facts.compiled) == ("A GPU", 24 * 2**30, True)
    assert (facts.nvcc, facts.nvcc_cuda, facts.torch_cuda) == ("/cuda/bin/nvcc", "13.0", "13.0")


def test_kernels_that_came_compiled_need_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"gsplat": "1.5.3+pt24cu124", "packaging": "24.0"}
    lacks = {"_find_nvcc": lambda: (None, []), "ninja_folder": lambda: None}
    answer(monkeypatch, _comes_compiled=lambda: True, _version=versions.get, **lacks)
    facts = cuda_check.check_cuda()
    assert facts.compiled and facts.nvcc is None


@pytest.mark.parametrize(
    ("answers", "message", "fix"),
    [
        (
            {"_torch_versions": lambda: ("2.11.0+cpu", None)},
            "2.11.0+cpu) is built for the CPU only",
            "CUDA build of torch",
        ),
        ({"_device": lambda: None}, "finds no CUDA device", "nvidia-smi"),
        ({"_version": lambda package: None}, "gsplat is not installed", "pip install gsplat==1.5.3"),
        ({"ninja_folder": lambda: None}, "ninja, which was not found (searched: PATH, ", "pip install ninja"),
        (
            {"_version": lambda package: {"gsplat": "1.5.3"}.get(package)},
            "needs the package `packaging`",
            "pip install packaging",
        ),
        (
            {"_find_nvcc": lambda: (None, ["CUDA_HOME", "PATH"])},
            "nvcc was not found (searched: CUDA_HOME, PATH)",
            "CUDA 13",
        ),
        (
            {"_nvcc_version": lambda nvcc: "12.8"},
            "/cuda/bin/nvcc is of CUDA 12.8, but this torch is built for CUDA 13.0",
            "CUDA 13",
        ),
        ({"_nvcc_version": lambda nvcc: ""}, "of CUDA an unknown version", "CUDA 13"),
    ],
)
def test_each_lack_is_one_sentence_with_its_fix(
    monkeypatch: pytest.MonkeyPatch, answers: dict[str, Callable[..., Any]], message: str, fix: str
) -> None:
    answer(monkeypatch, **answers)
    with pytest.raises(ClmError) as caught:
        cuda_check.check_cuda()
    assert message in caught.value.message and fix in caught.value.fix
    assert caught.value.exit_code == 2 and "\n" not in str(caught.value)


def test_a_missing_host_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch)
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ClmError, match="`no-such-compiler` was not found"):
        cuda_check.check_cuda()


def test_minor_versions_of_the_toolkit_may_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, _nvcc_version=lambda nvcc: "13.2")
    assert cuda_check.check_cuda().nvcc_cuda == "13.2"


def test_nvcc_is_looked_for_where_torch_looks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(variable, raising=False)
    for folder in ("home/bin", "path"):
        nvcc = tmp_path / folder / "nvcc"
        nvcc.parent.mkdir(parents=True)
        nvcc.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 12.4, V12.4.131'\n")
        nvcc.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "path"), prepend=":")
    assert cuda_check._find_nvcc()[0] == str(tmp_path / "path" / "nvcc")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "home"))
    found, _ = cuda_check._find_nvcc()
    assert found == str(tmp_path / "home" / "bin" / "nvcc") and cuda_check._nvcc_version(found) == "12.4"
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "empty"))
    assert cuda_check._find_nvcc() == (None, [str(tmp_path / "empty" / "bin" / "nvcc")])


def test_an_nvcc_that_does_not_run_has_no_version(tmp_path: Path) -> None:
    assert cuda_check._nvcc_version(str(tmp_path / "nvcc")) == ""


def executable(path: Path, text: str = "#!/bin/sh\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def test_ninja_is_found_on_path_and_else_beside_the_interpreter(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "venv" / "bin" / "python"))
    assert cuda_check.ninja_folder() is None
    executable(tmp_path / "venv" / "bin" / "ninja")
    assert cuda_check.ninja_folder() == str(tmp_path / "venv" / "bin")
    executable(tmp_path / "path" / "ninja")
    assert cuda_check.ninja_folder() == ""


class TestLoading:
    """`load_ops` with a stand-in for the module that compiles."""

    ops = pytest.importorskip("clm.render.gsplat_ops")
    backend = pytest.importorskip("clm.render.gsplat")
    gsplat = pytest.importorskip("gsplat", reason="gsplat is not installed")

    def load(self, monkeypatch: pytest.MonkeyPatch, kernels: object) -> list[str]:
        module = types.ModuleType("gsplat.cuda._backend")
        module._C = kernels  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "gsplat.cuda._backend", module)
        said: list[str] = []
        ops = self.ops.load_ops(said.append)
        assert ops.isect_tiles is self.gsplat.isect_tiles
        return said

    def test_the_first_compilation_is_announced_with_its_duration(self, monkeypatch: pytest.MonkeyPatch) -> None:
        answer(monkeypatch, _is_cached=lambda: False)
        (text,) = self.load(monkeypatch, object())
        assert "first time" in text and "one to three minutes" in text

    def test_compiled_kernels_load_without_a_word(self, monkeypatch: pytest.MonkeyPatch) -> None:
        answer(monkeypatch)
        assert self.load(monkeypatch, object()) == []

    @pytest.mark.parametrize(
        ("version", "other"), [("1.6.0", "; its largest alpha is 0.99, that"), ("1.5.4+pt24", ".")]
    )
    def test_a_release_that_was_never_tested_is_said_in_one_line(
        self, monkeypatch: pytest.MonkeyPatch, version: str, other: str
    ) -> None:
        answer(monkeypatch, _version={"gsplat": version, "packaging": "24.0"}.get)
        (text,) = self.load(monkeypatch, object())
        assert text.startswith(f"gsplat {version.split('+')[0]} was never tested here, 1.5.3 was{other}")
        assert "\n" not in text

    def test_a_release_whose_functions_are_other_ones_is_refused_in_one_sentence(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        answer(monkeypatch, _version={"gsplat": "1.4.0", "packaging": "24.0"}.get)
        monkeypatch.setattr(self.gsplat, "isect_tiles", lambda means2d, radii, depths, tile_size: None)
        with pytest.raises(ClmError, match=r"gsplat 1.4.0 is installed, whose `isect_tiles` .*packed") as caught:
            self.load(monkeypatch, object())
        assert "pip install gsplat==1.5.3" in caught.value.fix and "\n" not in str(caught.value)

    @pytest.mark.parametrize(("version", "limit"), [("1.5.3", 0.999), ("1.4.0", 0.999), ("1.6.0", 0.99), ("2", 0.99)])
    def test_the_largest_alpha_follows_the_release(self, version: str, limit: float) -> None:
        assert self.ops.alpha_limit(version) == limit

    def test_what_is_printed_while_compiling_goes_to_stderr(
        self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        answer(monkeypatch)

        class Chatty(types.ModuleType):
            def __getattr__(self, name: str) -> object:
                print("gsplat: Setting up CUDA")
                subprocess.run(["echo", "ninja: no work to do."], check=True)
                return object()

        monkeypatch.setitem(sys.modules, "gsplat.cuda._backend", Chatty("gsplat.cuda._backend"))
        self.ops.load_ops(lambda text: None)
        print("after")
        out, err = capfd.readouterr()
        assert out == "after\n" and "Setting up CUDA" in err and "no work to do" in err

    def test_ninja_beside_the_interpreter_is_put_on_path_before_gsplat_is_imported(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        answer(monkeypatch, ninja_folder=lambda: str(tmp_path))
        monkeypatch.setattr(self.ops, "ninja_folder", lambda: str(tmp_path))
        monkeypatch.setenv("PATH", "/usr/bin")
        paths: list[str] = []

        class Watching(types.ModuleType):
            def __getattr__(self, name: str) -> object:
                paths.append(os.environ["PATH"])
                return object()

        monkeypatch.setitem(sys.modules, "gsplat.cuda._backend", Watching("gsplat.cuda._backend"))
        self.ops.load_ops(lambda text: None)
        assert paths == [f"/usr/bin{os.pathsep}{tmp_path}"]

    def test_kernels_that_are_missing_after_the_import_are_an_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        answer(monkeypatch)
        with pytest.raises(ClmError, match="without its CUDA kernels"):
            self.load(monkeypatch, None)

    def test_a_compiler_that_fails_is_one_sentence(self, monkeypatch: pytest.MonkeyPatch) -> None:
        answer(monkeypatch)

        class Failing(types.ModuleType):
            def __getattr__(self, name: str) -> object:
                raise RuntimeError("Error building extension 'gsplat_cuda': ninja: stopped\nmany\nlines")

        monkeypatch.delitem(sys.modules, "gsplat.cuda._backend", raising=False)
        monkeypatch.setitem(sys.modules, "gsplat.cuda", Failing("gsplat.cuda"))
        with pytest.raises(ClmError, match="do not compile or load: Error building extension") as caught:
            self.ops.load_ops(lambda text: None)
        assert "\n" not in str(caught.value) and "VERBOSE=1" in caught.value.fix

    def test_a_rasterizer_cannot_be_made_where_something_is_missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        answer(monkeypatch, _device=lambda: None)
        with pytest.raises(ClmError, match="no CUDA device"):
            self.backend.GsplatRasterizer()


def test_importing_the_backend_imports_no_gsplat() -> None:
    pytest.importorskip("torch")
    code = "import sys, clm.render.gsplat; print('gsplat' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
