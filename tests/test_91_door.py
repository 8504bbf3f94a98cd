from pathlm import *
import pathlm
from pathlm.base import SettingError


def test_the_front_door():
    # %% ../nbs/91_door.ipynb #ba919360
    assert pathlm.SettingError is SettingError and "PathlmError" in dir(pathlm)
    for names in pathlm.HOME.values():
        for name in names.split(): assert getattr(pathlm, name).__name__ == name
