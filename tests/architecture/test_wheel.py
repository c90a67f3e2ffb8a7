"""An installed wheel finds its recipes."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from vlkd_cli.recipe.shipped import shipped_recipes

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel of this checkout, built with the tools that are installed here (no network)."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (built,) = folder.glob("vlkd-*.whl")
    return built


@pytest.mark.slow
def test_the_wheel_ships_package_recipes_and_license(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert (
        len([name for name in names if name.startswith("vlkd_cli/") and name.endswith(".py")]) > 60
    )
    for name in shipped_recipes():
        assert f"vlkd_cli/shipped_recipes/{name}.yaml" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert "vlkd_cli/data/readers/elevater_sets.json" in names
    for builder in ("openclip", "timm", "torchvision"):
        assert any(name.startswith(f"vlkd_cli/builders/listings/{builder}-") for name in names)
    assert not any(name.startswith(("tests/", "recipes/")) for name in names)


@pytest.mark.slow
def test_an_installed_vlkd_lists_and_checks_its_recipes(wheel, tmp_path):
    environment = tmp_path / "env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    python = environment / "bin" / "python"
    site = next(environment.glob("lib/python3*/site-packages"))
    # Without --ignore-installed pip would take vlkd out of the environment that runs this test.
    install = [
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--ignore-installed",
        "--prefix",
        str(environment),
        str(wheel),
    ]
    subprocess.run(
        [sys.executable, "-m", "pip", *install],
        check=True,
        capture_output=True,
    )
    # The libraries are those of the environment that runs this test; the package is the wheel's,
    # for it comes first.
    (site / "libraries.pth").write_text(sysconfig.get_paths()["purelib"])

    def vlkd(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(environment / "bin" / "vlkd"), *words],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )

    assert (environment / "bin" / "vlkd").read_text().startswith("#!")
    script = environment / "bin" / "vlkd"
    script.write_text(f"#!{python}\n" + script.read_text().partition("\n")[2])
    listed = vlkd("recipes", "list")
    assert listed.returncode == 0, listed.stderr
    for name in shipped_recipes():
        assert name in listed.stdout
    checked = vlkd("recipes", "check", "quickstart", "recipes/quickstart.yaml")
    assert checked.stdout == "quickstart: fine\nrecipes/quickstart.yaml: fine\n"
    where = [str(python), "-c", "import vlkd_cli; print(vlkd_cli.__file__)"]
    assert (
        str(environment)
        in subprocess.run(where, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    )
