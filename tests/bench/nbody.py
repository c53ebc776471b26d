"""The n-body simulation of the five outer bodies, in plain Python: nbody.py STEPS. Prints the energy before and after."""
import sys

PI = 3.14159265358979323
SOLAR_MASS = 4 * PI * PI
YEAR = 365.24
BODIES = [
    [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0], SOLAR_MASS],
    [
        [4.84143144246472090e00, -1.16032004402742839e00, -1.03622044471123109e-01],
        [1.66007664274403694e-03 * YEAR, 7.69901118419740425e-03 * YEAR, -6.90460016972063023e-05 * YEAR],
        9.54791938424326609e-04 * SOLAR_MASS,
    ],
    [
        [8.34336671824457987e00, 4.12479856412430479e00, -4.03523417114321381e-01],
        [-2.76742510726411021e-03 * YEAR, 4.99852801234917238e-03 * YEAR, 2.30417297573763929e-05 * YEAR],
        2.85885980666130812e-04 * SOLAR_MASS,
    ],
    [
        [1.28943695621391310e01, -1.51111514016986312e01, -2.23307578892655734e-01],
        [2.96460137564761618e-03 * YEAR, 2.37847173959480950e-03 * YEAR, -2.96589568540237556e-05 * YEAR],
        4.36624404335156298e-05 * SOLAR_MASS,
    ],
    [
        [1.53796971148509165e01, -2.59193146099879641e01, 1.79258772950371181e-01],
        [2.68067772490389322e-03 * YEAR, 1.62824170038242295e-03 * YEAR, -9.51592254519715870e-05 * YEAR],
        5.15138902046611451e-05 * SOLAR_MASS,
    ],
]
PAIRS = [(a, b) for i, a in enumerate(BODIES) for b in BODIES[i + 1 :]]


def advance(step, count):
    for _ in range(count):
        for (p1, v1, m1), (p2, v2, m2) in PAIRS:
            dx, dy, dz = p1[0] - p2[0], p1[1] - p2[1], p1[2] - p2[2]
            magnitude = step * (dx * dx + dy * dy + dz * dz) ** -1.5
            b1, b2 = m1 * magnitude, m2 * magnitude
            v1[0] -= dx * b2
            v1[1] -= dy * b2
            v1[2] -= dz * b2
            v2[0] += dx * b1
            v2[1] += dy * b1
            v2[2] += dz * b1
        for p, v, _mass in BODIES:
            p[0] += step * v[0]
            p[1] += step * v[1]
            p[2] += step * v[2]


def energy():
    total = 0.0
    for (p1, _v1, m1), (p2, _v2, m2) in PAIRS:
        dx, dy, dz = p1[0] - p2[0], p1[1] - p2[1], p1[2] - p2[2]
        total -= m1 * m2 / (dx * dx + dy * dy + dz * dz) ** 0.5
    for _p, v, mass in BODIES:
        total += mass * (v[0] * v[0] + v[1] * v[1] + v[2] * v[2]) / 2
    return total


print("%.9f" % energy())
advance(0.01, int(sys.argv[1]))
print("%.9f" % energy())
