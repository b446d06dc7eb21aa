"""The module pyce.training: its imports, and its errors for missing libraries."""

import pytest

from pyce._extras import advice


def test_nothing_is_imported_before_it_is_used(run_python):
    libraries = {"torch", "sklearn", "scipy", "PIL", "matplotlib", "numba"}
    code = "import sys, pyce\nassert 'pyce.training' not in sys.modules\nimport pyce.training\n"
    code += f"print(sorted({libraries!r} & set(sys.modules)))"
    assert run_python("-c", code).stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("module", "code"),
    [
        ("PIL", "presize([np.zeros((2, 2))], 2)"),
        ("matplotlib", "lr_find(lambda lr: 1.0).plot('curve.png')"),
    ],
)
def test_a_missing_library_is_named_with_its_extra(run_python, module, code):
    code = f"import sys; sys.modules[{module!r}] = None\nimport numpy as np\n" + (
        f"from pyce.training import *\ntry:\n    {code}\n"
        "except ImportError as error:\n    print(error)"
    )
    said = run_python("-c", code).stdout
    assert advice("training") in said
    assert said.count("\n") == 1
