"""Put `conf/` into the package that is built; an editable install reads the checkout's."""

from pathlib import Path
from shutil import copytree

from setuptools import setup
from setuptools.command.build_py import build_py


class WithConf(build_py):
    """Copy the modules, and `conf/` beside them."""

    def run(self) -> None:
        """Build."""
        super().run()
        if not self.editable_mode:
            inside = Path(self.build_lib, "feature_collisions", "conf")
            copytree(Path(__file__).with_name("conf"), inside, dirs_exist_ok=True)


setup(cmdclass={"build_py": WithConf})
