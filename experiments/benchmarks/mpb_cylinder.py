"""MPB on its own geometry, with its own subpixel smoothing; run by `subpixel.py` under an interpreter that has Meep.

Reads one JSON request from standard input and writes `{"frequency": (k, band)}` to the named file.
"""

import json
import sys

import meep
from meep import mpb


def main() -> None:
    request = json.load(sys.stdin)
    meep.verbosity(0)
    solver = mpb.ModeSolver(
        num_bands=request["bands"] + 2,
        geometry_lattice=meep.Lattice(size=meep.Vector3(1, 1)),
        geometry=[meep.Cylinder(radius=request["radius"], material=meep.Medium(epsilon=request["inside"]))],
        default_material=meep.Medium(epsilon=request["outside"]),
        resolution=request["resolution"],
        tolerance=1e-9,
        k_points=[meep.Vector3(*k) for k in request["wavevectors"]],
    )
    solver.run_te() if request["polarization"] == "te" else solver.run_tm()
    frequency = [list(row)[: request["bands"]] for row in solver.all_freqs]
    with open(request["answer"], "w") as file:
        json.dump({"frequency": frequency}, file)


if __name__ == "__main__":
    main()
