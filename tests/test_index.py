from pathlm import decompose
from pathlm import load
from pathlm import prune


def test_in_python():
    # %% ../nbs/index.ipynb #c3e8ff44
    model, tokenizer = load()                                  # the embedded model; or any model folder
    spectra = decompose(model, ["up_proj", "down_proj"])       # one decomposition, every rank
    rows = prune(model, spectra, rate=.75)                     # factors where they are smaller
    rows[0]["rank"], rows[0]["after"]/rows[0]["before"]            # of 256, and the share of the numbers that is left

    # %% ../nbs/index.ipynb #fb4ff3c2
    assert len(rows) == 12 and {row["rank"] for row in rows} == {64}
