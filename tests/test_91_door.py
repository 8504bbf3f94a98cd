from pathlm import *
import sys
from pathlib import Path
import pathlm
from pathlm.base import SettingError
import subprocess


def test_the_front_door():
    # %% ../nbs/91_door.ipynb #ba919360
    assert pathlm.SettingError is SettingError and "PathlmError" in dir(pathlm)
    for names in pathlm.HOME.values():
        for name in names.split(): assert getattr(pathlm, name).__name__ == name


def test_the_front_door_2():
    # %% ../nbs/91_door.ipynb #6ff67dcb
    PROGRAM = """
import pathlm, sys
finder = sys.meta_path[0]
assert not {'torch', 'numpy', 'transformers'} & sys.modules.keys() and isinstance(finder, pathlm.Registration)
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING as configs
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING as quantizers
assert 'pathlm' in quantizers and finder not in sys.meta_path and 'pathlm.checkpoints' not in sys.modules
del configs['pathlm'], quantizers['pathlm'], sys.modules['pathlm']
import pathlm
assert 'pathlm' in quantizers and not isinstance(sys.meta_path[0], pathlm.Registration)
"""
    assert subprocess.run([sys.executable, "-c", PROGRAM], cwd=Path(pathlm.__file__).parents[1]).returncode == 0
