"""Input recipe for goldens.json (numpy only).  Own code, safe to vendor into a test-suite.

For one case:
  rs = numpy.random.RandomState(case["seed"])
  for every entry of case["inputs"], IN ORDER:
     kind "randn" : a = rs.randn(*shape).astype(float32)
     kind "randint": a = rs.randint(low, high, size=shape)            (int64)
     kind "const" : a = float32(value)                                 (no draw)
     then, if "scale" : a = float32(scale) * a
     then, if "mix"   : [other, w]  ->  a = float32(w) * inputs[other] + a     (float32 arithmetic,
         after scale)
     then, if "copy_rows" : [[dst, src], ...]  -> a[dst] = a[src]
     then, if "l2axis": k -> a = a / sqrt(sum(a.astype(f64)**2, axis=k, keepdims)), computed in
         float64, cast to float32
  Multi-step cases just list step inputs as name@0, name@1, name@2.
"harness_norm": true means: the test feeds x / max(||x||_2, 1e-12) (row-wise, inside the autograd
graph) to the loss, and the reported gradient is taken with respect to the RAW array.
Reported gradient summaries: norm = ||g||_2 ; head = first 4 entries, C order ;
probe = <g, p> with p = RandomState(seed + 7919).randn(*shape) sampled again for every input.
"""

import numpy as np


def build(case):
    rs = np.random.RandomState(case["seed"])
    out = {}
    for spec in case["inputs"]:
        shape, kind = spec.get("shape", []), spec.get("kind", "randn")
        if kind == "randn":
            a = rs.randn(*shape).astype(np.float32) if shape else np.float32(rs.randn())
        elif kind == "randint":
            a = rs.randint(spec["low"], spec["high"], size=shape).astype(np.int64)
        elif kind == "const":
            a = np.asarray(spec["value"], dtype=np.float32)
        else:
            raise ValueError(kind)
        if "scale" in spec:
            a = np.float32(spec["scale"]) * a
        if "mix" in spec:
            other, w = spec["mix"]
            a = np.float32(w) * out[other] + a
        for dst, src in spec.get("copy_rows", []):
            a[dst] = a[src]
        if "l2axis" in spec:
            b = a.astype(np.float64)
            a = (b / np.sqrt((b**2).sum(axis=spec["l2axis"], keepdims=True))).astype(np.float32)
        out[spec["name"]] = a
    return out


def probe(case, shape):
    return np.random.RandomState(case["seed"] + 7919).randn(*shape)


def checksum(a):
    a = np.asarray(a, dtype=np.float64)
    return {"sum": float(a.sum()), "sumsq": float((a**2).sum())}


def verify(case):
    got = {k: checksum(v) for k, v in build(case).items()}
    for k, v in case["input_checksums"].items():
        for f in v:
            assert abs(v[f] - got[k][f]) <= 1e-6 * max(1.0, abs(v[f])), (
                case["id"],
                k,
                f,
                v[f],
                got[k][f],
            )
    return True
