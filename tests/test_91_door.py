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
class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == 'transformers.quantizers.base': raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupt())
try: import transformers.quantizers.auto
except KeyboardInterrupt: del sys.meta_path[0]
assert 'transformers.quantizers.auto' not in sys.modules and finder in sys.meta_path
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING as configs
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING as quantizers
assert 'pathlm' in quantizers and finder not in sys.meta_path and 'pathlm.checkpoints' not in sys.modules
del configs['pathlm'], quantizers['pathlm'], sys.modules['pathlm']
import pathlm
assert 'pathlm' in quantizers and not isinstance(sys.meta_path[0], pathlm.Registration)
"""
    FIRST = "import pathlm.quantizer as q; assert 'pathlm' in q.AUTO_QUANTIZER_MAPPING"
    for program in PROGRAM, FIRST:
        assert subprocess.run([sys.executable, "-c", program], cwd=Path(pathlm.__file__).parents[1]).returncode == 0
