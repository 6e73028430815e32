#!/usr/bin/env python3
"""Put an image with a layer of many files into a registry, on top of what REGISTRY/busybox is.

usage: many_files.py [REGISTRY [many|implied]]

many      a million files, a thousand in each directory
implied   200,000 files, each in a directory that is not listed

The archive is made by hand, header by header: `tarfile` takes minutes. The same base gives the same image.
"""
import hashlib, io, json, sys, urllib.request, zlib

REG = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:5000"
IMAGE = sys.argv[2] if len(sys.argv) > 2 else "many"
TIME = 1700000000
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"


def header(kind, mode, size):
    """What comes before and after the checksum of a ustar header but its name, and what those bytes add up to."""
    before = b"%07o\0%07o\0%07o\0%011o\0%011o\0" % (mode, 0, 0, size, TIME)
    after = (kind + b"\0" * 100 + b"ustar\00000").ljust(512 - 156, b"\0")
    return before, after, sum(before) + sum(after) + 8 * ord(" ")


def entry(head, name):
    before, after, base = head
    return b"%s%s%06o\0 %s" % (name.ljust(100, b"\0"), before, base + sum(name), after)


def many():
    """Pieces of the layer's tar."""
    folder, file = header(b"5", 0o755, 0), header(b"0", 0o644, 8)
    yield entry(folder, b"many/")
    for d in range(1000):
        out = [entry(folder, b"many/dir-%04d/" % d)]
        for f in range(1000):
            out.append(entry(file, b"many/dir-%04d/file-%04d.txt" % (d, f)))
            out.append((b"%03d %03d\n" % (d, f)).ljust(512, b"\0"))
        yield b"".join(out)
    yield b"\0" * 1024


def implied():
    """Pieces of the layer's tar."""
    file = header(b"0", 0o644, 8)
    for d in range(200):
        out = []
        for e in range(1000):
            out.append(entry(file, b"implied/dir-%04d/sub-%04d/file.txt" % (d, e)))
            out.append((b"%03d %03d\n" % (d, e)).ljust(512, b"\0"))
        yield b"".join(out)
    yield b"\0" * 1024


def call(method, url, data=None, **headers):
    url = url if url.startswith("http") else f"http://{REG}{url}"
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    with urllib.request.urlopen(urllib.request.Request(url, data, headers, method=method)) as answer:
        return answer.headers, answer.read()


def put_blob(data):
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    where = call("POST", f"/v2/{IMAGE}/blobs/uploads/", b"")[0]["Location"]
    call("PUT", where + ("&" if "?" in where else "?") + "digest=" + digest, data,
         Content_Type="application/octet-stream")
    return {"digest": digest, "size": len(data)}


plain, gzip, packed = hashlib.sha256(), zlib.compressobj(1, zlib.DEFLATED, 31), io.BytesIO()
for piece in {"many": many, "implied": implied}[IMAGE]():
    plain.update(piece)
    packed.write(gzip.compress(piece))
packed.write(gzip.flush())

manifest = json.loads(call("GET", "/v2/busybox/manifests/latest", Accept=MANIFEST)[1])
config = json.loads(call("GET", f"/v2/busybox/blobs/{manifest['config']['digest']}")[1])
for base in manifest["layers"]:
    call("POST", f"/v2/{IMAGE}/blobs/uploads/?mount={base['digest']}&from=busybox", b"")
config["rootfs"]["diff_ids"].append("sha256:" + plain.hexdigest())
config["history"].append({"created": config["created"], "created_by": "many_files.py"})
manifest["layers"].append({"mediaType": LAYER, **put_blob(packed.getvalue())})
manifest["config"].update(put_blob(json.dumps(config).encode()))
call("PUT", f"/v2/{IMAGE}/manifests/latest", json.dumps(manifest).encode(), Content_Type=MANIFEST)
