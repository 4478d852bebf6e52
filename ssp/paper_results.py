"""What the paper reports, to stand beside what is found here.

Test images of the Allen Institute's collection, 1000 passes, networks of width 32.

Reference: Zhou et al., RepMode, CVPR 2023, tables 1, 2 and 3.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ssp.scores import ALL

Scores = Mapping[str, float]  # by metric: mse, mae, r2
METRICS = ("mse", "mae", "r2")

# MSE, MAE and R2 of each structure in the order of Table 1, and of all.
TASKS = (
    "beta_actin", "myosin_iib", "membrane_caax_63x", "desmoplakin", "dna", "sec61_beta", "st6gal1",
    "alpha_tubulin", "tom20", "lamin_b1", "fibrillarin", "zo1",
)  # fmt: skip
_TABLE1 = {
    "multi-net": (
        ".4241 .4716 .5695 .7247 .4443 .2606 .5940 .4351 .3930 "
        ".8393 .5640 .0162 .5806 .5033 .3822 .4635 .4914 .5262 "
        ".8023 .5732 .0801 .3682 .4348 .6296 .4684 .3921 .5172 "
        ".3014 .3006 .6954 .2164 .1789 .7826 .6474 .3369 .3370 "
        ".5341 .4269 .4337"
    ),
    "multi-head-dec": (
        ".4278 .4803 .5657 .7052 .4363 .2804 .5785 .4625 .4089 "
        ".8431 .5677 .0118 .5312 .4764 .4346 .4454 .4832 .5448 "
        ".7925 .5768 .0910 .3932 .4594 .6044 .4545 .3888 .5315 "
        ".2687 .2895 .7284 .2114 .1762 .7877 .6396 .3252 .3451 "
        ".5226 .4258 .4456"
    ),
    "multi-head-las": (
        ".4648 .4978 .5281 .6697 .4222 .3168 .5568 .4441 .4310 "
        ".8402 .5637 .0148 .5088 .4824 .4581 .4372 .4697 .5531 "
        ".7918 .5807 .0921 .3781 .4465 .6196 .4649 .3991 .5208 "
        ".2909 .3057 .7059 .2213 .1870 .7778 .6547 .3367 .3298 "
        ".5223 .4275 .4461"
    ),
    "condnet": (
        ".4246 .4719 .5688 .6873 .4286 .2988 .5635 .4157 .4242 "
        ".8422 .5655 .0126 .4967 .4707 .4712 .4290 .4697 .5615 "
        ".7996 .5823 .0831 .3868 .4523 .6108 .4673 .4067 .5184 "
        ".2876 .3014 .7094 .2203 .1865 .7787 .6569 .3241 .3274 "
        ".5206 .4232 .4478"
    ),
    "tsns": (
        ".4279 .4779 .5656 .6691 .4111 .3174 .5309 .4346 .4575 "
        ".8392 .5630 .0160 .4974 .4682 .4702 .4362 .4785 .5543 "
        ".7892 .5777 .0949 .3407 .4235 .6572 .4625 .3956 .5233 "
        ".2904 .2991 .7064 .2116 .1751 .7874 .6479 .3320 .3367 "
        ".5113 .4192 .4572"
    ),
    "pipo-fan": (
        ".4063 .4603 .5873 .6815 .4306 .3046 .5440 .4389 .4441 "
        ".8417 .5674 .0131 .4868 .4626 .4813 .4433 .4832 .5470 "
        ".7968 .5861 .0861 .3604 .4365 .6373 .4750 .4171 .5105 "
        ".2904 .3003 .7065 .2097 .1782 .7894 .6437 .3282 .3410 "
        ".5141 .4237 .4543"
    ),
    "dodnet": (
        ".4215 .4706 .5721 .6989 .4204 .2870 .5459 .4390 .4422 "
        ".8415 .5633 .0133 .5280 .4810 .4382 .4414 .4844 .5490 "
        ".7927 .5774 .0909 .3972 .4606 .6004 .4772 .4119 .5081 "
        ".2976 .3164 .6992 .2250 .1934 .7740 .6703 .3336 .3137 "
        ".5276 .4291 .4406"
    ),
    "tgnet-style": (
        ".3917 .4535 .6023 .6843 .4213 .3018 .5856 .4227 .4015 "
        ".8392 .5654 .0160 .5011 .4746 .4666 .4441 .4806 .5460 "
        ".7870 .5774 .0973 .3569 .4310 .6410 .4585 .3971 .5274 "
        ".2748 .2940 .7222 .2093 .1799 .7897 .6232 .3238 .3619 "
        ".5108 .4183 .4578"
    ),
    "repmode": (
        ".3936 .4558 .6004 .6572 .4103 .3295 .5443 .4136 .4437 "
        ".8358 .5619 .0199 .4852 .4598 .4831 .4046 .4445 .5865 "
        ".7792 .5694 .1064 .3389 .4171 .6590 .4459 .3885 .5404 "
        ".2631 .2820 .7340 .1995 .1682 .7997 .6168 .3245 .3685 "
        ".4956 .4078 .4735"
    ),
}


def _read(numbers: str) -> dict[str, Scores]:
    """Return scores by task of the numbers of one row."""
    values = [float(number) for number in numbers.split()]
    names = (*TASKS, ALL)
    return {
        name: dict(zip(METRICS, values[3 * place : 3 * place + 3], strict=True))
        for place, name in enumerate(names)
    }


def _of_all(rows: Iterable[tuple[str, float, float, float]]) -> dict[str, dict[str, Scores]]:
    """Return scores of all images by title."""
    return {title: {ALL: dict(zip(METRICS, values, strict=True))} for title, *values in rows}


# By method, then by task or "All".
TABLE1: dict[str, dict[str, Scores]] = {name: _read(row) for name, row in _TABLE1.items()}

# By the titles of `ssp.ablations`.
TABLE2 = _of_all([
    ("only in Dec.", 0.5097, 0.4139, 0.4590),
    ("only in Enc.", 0.5079, 0.4184, 0.4607),
    ("w/o 1x1x1 expert pair", 0.5027, 0.4106, 0.4662),
    ("w/o 3x3x3 expert pair", 0.5080, 0.4141, 0.4605),
    ("w/o 5x5x5 expert pair", 0.5017, 0.4108, 0.4672),
    ("w/o Conv expert", 0.5631, 0.4346, 0.4042),
    ("w/o Avgp-Conv expert", 0.5037, 0.4101, 0.4651),
    ("w/o Avgp", 0.4999, 0.4112, 0.4691),
    ("all use Avgp 3x3x3", 0.4974, 0.4072, 0.4716),
    ("all use Avgp 5x5x5", 0.4964, 0.4091, 0.4725),
    ("use Gauss. task embedding", 0.5071, 0.4155, 0.4616),
    ("use two-layer FCN", 0.4980, 0.4060, 0.4710),
    ("use Sigmoid activation", 0.4992, 0.4094, 0.4698),
    ("Input-dep. gating", 0.7958, 0.5527, 0.1619),
    ("repmode", 0.4956, 0.4078, 0.4735),
])  # fmt: skip

# Of the task that was learned afterwards.
TABLE3: dict[str, dict[str, Scores]] = {
    method: {task: dict(zip(METRICS, values, strict=True)) for task, values in rows.items()}
    for method, rows in {
        "multi-net": {
            "fibrillarin": (0.2164, 0.1789, 0.7826),
            "membrane_caax_63x": (0.5940, 0.4351, 0.3930),
        },
        "multi-head-dec": {
            "fibrillarin": (0.2121, 0.1811, 0.7870),
            "membrane_caax_63x": (0.5339, 0.4097, 0.4543),
        },
        "repmode": {
            "fibrillarin": (0.2052, 0.1774, 0.7939),
            "membrane_caax_63x": (0.5260, 0.4077, 0.4625),
        },
    }.items()
}
