"""What every method's network promises, for the tests of the papers: `wsss_nb.papers.conformity` has the promises."""
from wsss_nb.papers.conformity import PROMISES, check, training_batch

ON = dict(rollout='timm:test_vit')  # what a method stands on that does not stand on `tiny`


def ground(method): return ON.get(method, 'tiny')


def check_localiser(
    make,  # number of classes -> a Localiser
    **reading,  # settings of the reading that are not the defaults
):
    "Every promise is kept, and none is left out"
    kept = []
    check(make, reading=reading, say=kept.append)
    assert len(kept) == len(PROMISES) == 10
