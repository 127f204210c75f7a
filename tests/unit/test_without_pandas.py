"""Serve's utils load without pandas, and everything else still finds it."""

import subprocess
import sys


def test_serve_comes_without_pandas_and_others_still_have_it() -> None:
    program = (
        "import sys, deployments.without_pandas, ray.serve\n"
        "assert 'pandas' not in sys.modules, 'Serve took pandas in'\n"
        "import pandas\n"
        "assert len(pandas.DataFrame({'a': [1]})) == 1"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_who_has_pandas_keeps_it() -> None:
    program = "import pandas, deployments.without_pandas, ray.serve, sys\nassert sys.modules['pandas'] is pandas"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
