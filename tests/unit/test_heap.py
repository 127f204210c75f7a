"""An ingest takes no pandas in, and whoever wants it still finds it."""

import subprocess
import sys


def test_columns_are_made_without_pandas_which_can_still_be_imported() -> None:
    program = (
        "import sys, pyarrow as pa\n"
        "from app.heap import bound_heap, give_back, leave_pandas_out\n"
        "leave_pandas_out()\n"
        "bound_heap()\n"
        "import tune.ingest, app.lake.follow\n"
        "column = pa.array([b'a', None])\n"
        "give_back()\n"
        "assert column.to_pylist() == [b'a', None]\n"
        "assert 'pandas' not in sys.modules, 'something took pandas in'\n"
        "import pandas\n"
        "assert len(pandas.DataFrame({'a': [1]})) == 1"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
