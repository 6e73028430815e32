#!/usr/bin/env python3
"""Write OCI image layouts from directories, for the test bases.

usage: oci-layout.py layer BLOBS OUT.json DIR                 compress DIR once into BLOBS, describe it in OUT.json
       oci-layout.py image LAYOUT TAG BLOBS CONFIG.json LAYER.json...   one image out of layers made before

DIR may be an overlayfs upper directory: 0:0 character devices become .wh. files and opaque directories get
.wh..wh..opq. Blobs enter a layout as hard links. The same input bytes give the same image.
"""
import hashlib, io, json, os, platform, stat, sys, tarfile, zlib

EPOCH = 1700000000
CREATED = "2023-11-14T22:13:20Z"
ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())


class Hashed(io.RawIOBase):
    """Counts and hashes what passes through to `out`."""

    def writable(self):
        return True

    def __init__(self, out):
        self.out, self.hash, self.size = out, hashlib.sha256(), 0

    def write(self, data):
        self.hash.update(data)
        self.size += len(data)
        self.out.write(data)
        return len(data)

    def digest(self):
        return "sha256:" + self.hash.hexdigest()


class Gzip(io.RawIOBase):
    """One gzip member without name or time, so that equal input gives equal bytes."""

    def __init__(self, out):
        self.out, self.crc, self.size = out, 0, 0
        self.deflate = zlib.compressobj(4, zlib.DEFLATED, -15)
        out.write(b"\x1f\x8b\x08\0\0\0\0\0\0\xff")

    def write(self, data):
        self.crc, self.size = zlib.crc32(data, self.crc), self.size + len(data)
        self.out.write(self.deflate.compress(data))
        return len(data)

    def finish(self):
        self.out.write(self.deflate.flush())
        self.out.write(self.crc.to_bytes(4, "little") + (self.size & 0xFFFFFFFF).to_bytes(4, "little"))


def whiteout(tar, directory, name):
    entry = tarfile.TarInfo(os.path.normpath(os.path.join(directory, name)))
    entry.mtime = EPOCH
    tar.addfile(entry)


def add(tar, path, name, links):
    st = os.lstat(path)
    if stat.S_ISCHR(st.st_mode) and st.st_rdev == 0:
        return whiteout(tar, os.path.dirname(name), ".wh." + os.path.basename(name))
    if stat.S_ISSOCK(st.st_mode):
        return None
    tar.inodes = {}                                    # hard links are decided here, not by tarfile
    entry = tar.gettarinfo(path, name)
    entry.uname = entry.gname = ""
    entry.mtime = min(int(st.st_mtime), EPOCH)
    if not entry.isreg():
        return tar.addfile(entry)
    first = links.setdefault((st.st_dev, st.st_ino), name)
    if st.st_nlink > 1 and first != name:
        entry.type, entry.linkname, entry.size = tarfile.LNKTYPE, first, 0
        return tar.addfile(entry)
    with open(path, "rb") as content:
        return tar.addfile(entry, content)


def write_tar(out, root):
    links = {}
    with tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT) as tar:
        for directory, dirs, files in os.walk(root):
            dirs.sort()
            relative = os.path.relpath(directory, root)
            if relative != ".":
                add(tar, directory, relative, links)
                try:
                    if os.getxattr(directory, "trusted.overlay.opaque") == b"y":
                        whiteout(tar, relative, ".wh..wh..opq")
                except OSError:
                    pass
            for name in sorted(files + [d for d in dirs if os.path.islink(os.path.join(directory, d))]):
                add(tar, os.path.join(directory, name), os.path.normpath(os.path.join(relative, name)), links)


def layer(blobs, out, root):
    os.makedirs(blobs, exist_ok=True)
    temporary = os.path.join(blobs, f"tmp-{os.getpid()}")
    with open(temporary, "wb") as file:
        packed = Hashed(file)
        gzip = Gzip(packed)
        plain = Hashed(gzip)
        buffered = io.BufferedWriter(plain, 1 << 20)
        write_tar(buffered, root)
        buffered.flush()
        gzip.finish()
    os.rename(temporary, os.path.join(blobs, packed.hash.hexdigest()))
    with open(out, "w") as file:
        json.dump({"digest": packed.digest(), "size": packed.size, "diff_id": plain.digest(),
                   "name": os.path.basename(out).removesuffix(".json")}, file)


def image(layout, tag, blobs, config_path, *layer_paths):
    store = os.path.join(layout, "blobs", "sha256")
    os.makedirs(store, exist_ok=True)

    def put(document):
        data = json.dumps(document, separators=(",", ":")).encode()
        digest = hashlib.sha256(data).hexdigest()
        with open(os.path.join(store, digest), "wb") as file:
            file.write(data)
        return {"digest": "sha256:" + digest, "size": len(data)}

    layers = []
    for path in layer_paths:
        with open(path) as file:
            layers.append(json.load(file))
    for one in layers:
        name = one["digest"].split(":")[1]
        if not os.path.exists(os.path.join(store, name)):
            os.link(os.path.join(blobs, name), os.path.join(store, name))
    with open(config_path) as file:
        config = json.load(file)
    history = [{"created": CREATED, "created_by": one["name"]} for one in layers]
    history.append({"created": CREATED, "created_by": "CMD " + json.dumps(config.get("Cmd")), "empty_layer": True})
    described = put({"created": CREATED, "architecture": ARCHITECTURE, "os": "linux", "config": config,
                     "rootfs": {"type": "layers", "diff_ids": [one["diff_id"] for one in layers]},
                     "history": history})
    kind = "application/vnd.oci.image.manifest.v1+json"
    manifest = put({"schemaVersion": 2, "mediaType": kind,
                    "config": {"mediaType": "application/vnd.oci.image.config.v1+json", **described},
                    "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
                                "digest": one["digest"], "size": one["size"]} for one in layers]})
    with open(os.path.join(layout, "oci-layout"), "w") as file:
        file.write('{"imageLayoutVersion":"1.0.0"}')
    with open(os.path.join(layout, "index.json"), "w") as file:
        json.dump({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [
            {"mediaType": kind, **manifest, "platform": {"architecture": ARCHITECTURE, "os": "linux"},
             "annotations": {"org.opencontainers.image.ref.name": tag}}]}, file)


if len(sys.argv) < 5 or sys.argv[1] not in ("layer", "image"):
    sys.exit(__doc__)
{"layer": layer, "image": image}[sys.argv[1]](*sys.argv[2:])
