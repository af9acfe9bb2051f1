"""The 19 tasks of VTAB-1k: classes, numbers of test images, licences.

Names are those of the folders of NOAH's archive, which other archives share (some say cifar100 for cifar). Numbers are
those of the tests of `task_adaptation` (Zhai et al. 2019, arXiv 1910.04867). Training has 800 images and validation
200, whatever the task; most structured tasks are made from one data set twice, with two kinds of labels.
"""

from __future__ import annotations

from vpeft.data.set_facts import SetFacts

TRAIN, VAL = 800, 200
NATURAL, SPECIALISED, STRUCTURED = "natural", "specialised", "structured"
# Other names of the folders in use.
ALIASES = {
    "cifar100": "cifar",
    "flowers": "oxford_flowers102",
    "pets": "oxford_iiit_pet",
    "retinopathy": "diabetic_retinopathy",
}
_JPEG = "The published archive holds JPEG copies of its lossless images (quality 75)."


def _task(title: str, classes: int, test: int, licence: str, source: str, *notes: str) -> SetFacts:
    return SetFacts(
        title=title, classes=classes, train=TRAIN, val=VAL, test=test, licence=licence, source=source, notes=notes
    )


FACTS: dict[str, SetFacts] = {
    "cifar": _task("CIFAR-100", 100, 10_000, "none stated", "https://www.cs.toronto.edu/~kriz/cifar.html", _JPEG),
    "caltech101": _task("Caltech101", 102, 6_084, "CC BY 4.0", "https://data.caltech.edu/records/mzrjq-6wc02"),
    "dtd": _task("DTD", 47, 1_880, "for research", "https://www.robots.ox.ac.uk/~vgg/data/dtd/"),
    "oxford_flowers102": _task(
        "Flowers102", 102, 6_149, "none stated", "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/"
    ),
    "oxford_iiit_pet": _task("Pets", 37, 3_669, "CC BY-SA 4.0", "https://www.robots.ox.ac.uk/~vgg/data/pets/"),
    "svhn": _task("SVHN", 10, 26_032, "non-commercial", "http://ufldl.stanford.edu/housenumbers/", _JPEG),
    "sun397": _task(
        "Sun397",
        397,
        21_750,
        "none stated",
        "https://vision.princeton.edu/projects/2010/SUN/",
        "Of the 397 classes 325 are among the 1,000 training images.",
    ),
    "patch_camelyon": _task("Camelyon", 2, 32_768, "CC0", "https://github.com/basveeling/pcam", _JPEG),
    "eurosat": _task("EuroSAT", 10, 5_400, "MIT", "https://github.com/phelber/EuroSAT"),
    "resisc45": _task("Resisc45", 45, 6_300, "none stated", "https://arxiv.org/abs/1703.00121"),
    "diabetic_retinopathy": _task(
        "Retinopathy",
        5,
        42_670,
        "rules of the Kaggle competition",
        "https://www.kaggle.com/c/diabetic-retinopathy-detection",
        "The classes are far from equally frequent: the most frequent has about 74 % of the test.",
    ),
    "clevr_count": _task("Clevr-Count", 8, 15_000, "CC BY 4.0", "https://cs.stanford.edu/people/jcjohns/clevr/", _JPEG),
    "clevr_dist": _task("Clevr-Dist", 6, 15_000, "CC BY 4.0", "https://cs.stanford.edu/people/jcjohns/clevr/", _JPEG),
    "dmlab": _task("DMLab", 6, 22_735, "none stated", "https://arxiv.org/abs/1910.04867"),
    "kitti": _task("KITTI-Dist", 4, 711, "CC BY-NC-SA 3.0", "https://www.cvlibs.net/datasets/kitti/", _JPEG),
    "dsprites_loc": _task(
        "dSpr-Loc", 16, 73_728, "Apache 2.0", "https://github.com/google-deepmind/dsprites-dataset", _JPEG
    ),
    "dsprites_ori": _task(
        "dSpr-Ori", 16, 73_728, "Apache 2.0", "https://github.com/google-deepmind/dsprites-dataset", _JPEG
    ),
    "smallnorb_azi": _task(
        "sNORB-Azim",
        18,
        12_150,
        "for research, not commercial",
        "https://cs.nyu.edu/~yann/data/norb-v1.0-small/",
        _JPEG,
    ),
    "smallnorb_ele": _task(
        "sNORB-Ele", 9, 12_150, "for research, not commercial", "https://cs.nyu.edu/~yann/data/norb-v1.0-small/", _JPEG
    ),
}

# In the order of tables.
GROUPS: dict[str, str] = {
    name: NATURAL if place < 7 else SPECIALISED if place < 11 else STRUCTURED for place, name in enumerate(FACTS)
}
