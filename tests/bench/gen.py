#!/usr/bin/env python3
"""Generate the benchmark workloads deterministically.

usage: gen.py OUT_DIR [REGISTRY [WORKLOAD...]]          all of them, or those named

w1      node app: package.json, install that writes 5,000 files, source copy
w2      20,000 small files (avg 4 KiB) and a .dockerignore that drops 2,000 more
w3copy  1 GiB of mixed data, COPY
w3run   1 GiB of mixed data, made by RUN
w4      50 RUN steps
w5      4 independent stages of RUN sleep 2, joined by COPY --from
w6      FROM node, one trivial RUN
w7      RUN chown -R over what the base brings
w8      RUN that writes 2,000 files and waits for the disk after each
w9      RUN that makes 200,000 files
w10     COPY of 200,000 files
w11     the same in one directory
w12     RUN that makes 200,000 files in one directory, COPY --from of them
w13     RUN that makes 1,000,000 files, COPY --from of them
w14     FROM an image with 1,000,000 files in one layer (many_files.py puts it there), one trivial RUN
w15     RUN that makes 500,000 files with two names each, COPY --from of them
w16     ADD of an archive of 200,000 files
w17     RUN that makes 200,000 files, COPY --from of two directories of them and of a pattern that matches 100,000
w18     image and archive to ADD of 200,000 files, each in a directory that is not listed
w19     RUN that makes 200,000 files with two names each and 200,000 others, COPY --from that puts these in place of the first names
w20     RUN that makes 300,000 symbolic links and gives them away (rbuild: where one id is mapped)
w21     COPY of 200,000 files, each in a directory of its own
w22     ADD of 500 archives of 1,000 files each
w23     RUN that makes 20,000 Node packages (rbuild: listed in an SBOM)
w24     RUN that makes 200,000 directories of two files, COPY --from of them that leaves one of the files out
w25     RUN that makes 320,000 files, eight stages with a COPY --from of 40,000 of them each, COPY --from of each of these
"""
import io, os, random, sys, tarfile

OUT = sys.argv[1]
REG = sys.argv[2] if len(sys.argv) > 2 else "127.0.0.1:5000"
SYL = [a + b for a in "bcdfghjklmnprstvz" for b in "aeiou"]


def write(path, data):
    path = os.path.join(OUT, path)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as f:
        f.write(data if isinstance(data, bytes) else data.encode())
    os.utime(path, (1700000000, 1700000000))


def tar(entries):
    """An archive of files with their contents, and of directories with none."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in entries:
            entry = tarfile.TarInfo(name)
            entry.mtime = 1700000000
            if data is None:
                entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            else:
                entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data or b""))
    return out.getvalue()


def text(rng, n):
    """About n bytes of source-like text."""
    out, size = [], 0
    while size < n:
        line = "  const %s%s = %s(%d, '%s');\n" % (rng.choice(SYL), rng.choice(SYL), rng.choice(SYL),
                                                rng.randrange(10**6), "".join(rng.choices(SYL, k=6)))
        out.append(line)
        size += len(line)
    return "".join(out)[:n]


def w1():
    rng = random.Random(1)
    write("w1/package.json", '{"name":"app","version":"1.0.0","dependencies":{"left-pad":"1.3.0"},"files":5000}\n')
    for i in range(300):
        write(f"w1/src/mod{i // 30}/f{i}.js", text(rng, rng.randrange(1000, 12000)))
    write("w1/src/index.js", "console.log('hello');\n")
    write("w1/node_modules/local/ignored.js", text(rng, 50000))
    write("w1/.dockerignore", "node_modules\n.git\n*.log\n")
    install = ("const fs=require('fs');const n=JSON.parse(fs.readFileSync('package.json')).files;"
               "let s=1;const r=()=>(s=(s*1103515245+12345)%2147483648);"
               "for(let i=0;i<n;i++){const d='node_modules/p'+(i%250)+'/lib';fs.mkdirSync(d,{recursive:true});"
               "let b='';const k=200+r()%6000;while(b.length<k)b+='exports.x'+r()+'='+r()+';\\\\n';"
               "fs.writeFileSync(d+'/f'+i+'.js',b);}")
    write("w1/Dockerfile", f'FROM {REG}/node\nWORKDIR /app\nCOPY package.json ./\nRUN node -e "{install}"\n'
                           'COPY . .\nENV NODE_ENV=production\nEXPOSE 3000\nCMD ["node", "src/index.js"]\n')


def w2():
    rng = random.Random(2)
    blob = text(rng, 1 << 20)
    for i in range(22000):
        n = min(65536, int(rng.expovariate(1 / 4096)) + 1)
        off = rng.randrange(len(blob) - n)
        if i < 20000:
            name = f"w2/pkg{i // 1000:02d}/d{i // 100 % 10}/file{i}.txt"
        elif i < 21000:
            name = f"w2/tmp/{i}.bin"
        else:
            name = f"w2/pkg{i % 20:02d}/log/{i}.log"
        write(name, f"{i}\n" + blob[off:off + n])
    write("w2/.dockerignore", "tmp\n**/*.log\n!pkg00/keep.log\n.git\n")
    write("w2/Dockerfile", f"FROM {REG}/busybox\nCOPY . /app\n")


def w3copy():
    rng = random.Random(3)
    half = bytes(b"0123456789abcdef"[i % 16] for i in range(256))   # 4 bits of entropy a byte
    words = text(rng, 1 << 20).encode()
    for i in range(64):                                            # 64 x 16 MiB
        if i % 4 == 0:
            data = rng.randbytes(16 << 20)
        elif i % 4 == 1:
            data = words[i:] * 17
        else:
            data = rng.randbytes(16 << 20).translate(half)
        write(f"w3copy/data/f{i:02d}.bin", data[:16 << 20])
    write("w3copy/Dockerfile", f"FROM {REG}/debian\nCOPY data /data\n")


def w3run():
    write("w3run/Dockerfile", f"""FROM {REG}/debian
RUN mkdir /data && head -c 268435456 /dev/urandom > /data/rand \\
 && (for i in 1 2 3 4 5 6 7 8; do tar cf - /usr /var; done) | head -c 536870912 > /data/real \\
 && seq 1 40000000 | head -c 268435456 > /data/text
""")


def w4():
    write("w4/Dockerfile", f"FROM {REG}/busybox\n" + "".join(f"RUN echo {i} > /f{i}\n" for i in range(1, 51)))


def w5():
    stages = "".join(f"FROM {REG}/busybox AS s{i}\nRUN sleep 2; mkdir /out; echo {i} > /out/{i}\n" for i in range(4))
    write("w5/Dockerfile", stages + f"FROM {REG}/busybox\n" + "".join(f"COPY --from=s{i} /out/ /out/\n" for i in range(4)))


def w6():
    write("w6/Dockerfile", f"FROM {REG}/node\nRUN true\n")


def w7():
    write("w7/Dockerfile", f"FROM {REG}/debian\nRUN chown -R 1000:1000 /usr /var\n")


def w8():
    files = "for (1..2000) { open F, '>', $_; print F $_; F->flush; F->sync; close F }"
    write("w8/Dockerfile", f"""FROM {REG}/debian
RUN mkdir /data && cd /data && perl -MIO::Handle -e "{files.replace('$', chr(92) + '$')}"
""")


def w9():
    make = "for $d (1..2000) { mkdir $d; for (1..100) { open F, '>', qq($d/file-$_); print F qq($d $_); close F } }"
    write("w9/Dockerfile", f"""FROM {REG}/debian
RUN mkdir /data && cd /data && perl -e "{make.replace('$', chr(92) + '$')}"
""")


def w10():
    for i in range(200000):
        write(f"w10/data/dir{i // 100:04d}/file{i:06d}.txt", f"{i}\n")
    write("w10/Dockerfile", f"FROM {REG}/busybox\nCOPY data /data\n")


def w11():
    for i in range(200000):
        write(f"w11/data/file{i:06d}.txt", f"{i}\n")
    write("w11/Dockerfile", f"FROM {REG}/busybox\nCOPY data /data\n")


def w12():
    make = "for (1..200000) { open F, '>', qq(file-$_); print F $_; close F }"
    write("w12/Dockerfile", f"""FROM {REG}/debian AS made
RUN mkdir /data && cd /data && perl -e "{make.replace('$', chr(92) + '$')}"
FROM {REG}/busybox
COPY --from=made /data /data
""")


def w13():
    make = "for $d (1..1000) { mkdir $d; for (1..1000) { open F, '>', qq($d/file-$_); print F qq($d $_); close F } }"
    write("w13/Dockerfile", f"""FROM {REG}/debian AS made
RUN mkdir /data && cd /data && perl -e "{make.replace('$', chr(92) + '$')}"
FROM {REG}/busybox
COPY --from=made /data /data
""")


def w14():
    write("w14/Dockerfile", f"FROM {REG}/many\nRUN true\n")


def w15():
    make = ("for $d (1..500) { mkdir $d; for (1..1000) { open F, '>', qq($d/file-$_); print F qq($d $_); close F; "
            "link qq($d/file-$_), qq($d/other-$_) } }")
    write("w15/Dockerfile", f"""FROM {REG}/debian AS made
RUN mkdir /data && cd /data && perl -e "{make.replace('$', chr(92) + '$')}"
FROM {REG}/busybox
COPY --from=made /data /data
""")


def w16():
    dirs = ((f"dir-{d:03d}", [(f"dir-{d:03d}/file-{f:03d}.txt", b"%03d %03d\n" % (d, f)) for f in range(1000)])
            for d in range(200))
    write("w16/files.tar", tar(entry for folder, files in dirs for entry in [(folder, None), *files]))
    write("w16/Dockerfile", f"FROM {REG}/busybox\nADD files.tar /data/\n")


def w17():
    make = ("for $d ('a', 'b') { mkdir $d; for $e (1..100) { mkdir qq($d/$e); for (1..1000) { "
            "open F, '>', qq($d/$e/file-$e-$_); print F qq($d $e $_); close F } } }")
    write("w17/Dockerfile", f"""FROM {REG}/debian AS made
RUN mkdir /data && cd /data && perl -e "{make.replace('$', chr(92) + '$')}"
FROM {REG}/busybox
COPY --from=made /data/a /data/b /both/
COPY --from=made /data/a/*/* /flat/
""")


def w18():
    write("w18/files.tar", tar((f"dir-{d % 200:03d}/sub-{d:06d}/file.txt", b"%d\n" % d) for d in range(200_000)))
    write("w18/Dockerfile", f"FROM {REG}/implied\nADD files.tar /data/\n")


def w19():
    make = ("mkdir $_ for ('a', 'b'); for $d (1..200) { mkdir qq($_/$d) for ('a', 'b'); for (1..1000) { "
            "for $e ('a', 'b') { open F, '>', qq($e/$d/file-$_); print F qq($d $_ $e); close F } "
            "link qq(a/$d/file-$_), qq(a/$d/other-$_) } }")
    write("w19/Dockerfile", f"""FROM {REG}/debian AS made
RUN mkdir /data && cd /data && perl -e "{make.replace('$', chr(92) + '$')}"
FROM {REG}/busybox
COPY --from=made /data/a /data/b /both/
""")


def w20():
    make = "for $d (1..300) { mkdir $d; symlink qq(../$_), qq($d/link-$_) for (1..1000) }"
    write("w20/Dockerfile", f"""FROM {REG}/debian
RUN mkdir /data && cd /data && perl -e "{make.replace('$', chr(92) + '$')}" && chown -hR 33:33 /data
""")


def w21():
    for d in range(200_000):
        write(f"w21/data/dir-{d % 200:03d}/sub-{d:06d}/file.txt", b"%d\n" % d)
    write("w21/Dockerfile", f"FROM {REG}/busybox\nCOPY data /data/\n")


def w22():
    for a in range(500):
        files = ((f"dir-{a:03d}/file-{f:03d}.txt", b"%03d %03d\n" % (a, f)) for f in range(1000))
        write(f"w22/archive-{a:03d}.tar", tar(files))
    write("w22/Dockerfile", f"FROM {REG}/busybox\nADD archive-*.tar /data/\n")


def w23():
    make = ("for (1..20000) { mkdir qq(p-$_); open F, '>', qq(p-$_/package.json); "
            "print F '{', chr(34), 'name', chr(34), ':', chr(34), qq(package-$_), chr(34), ',', chr(34), 'version', chr(34), ':', "
            "chr(34), qq(1.0.$_), chr(34), '}'; close F }")
    write("w23/Dockerfile", f"""FROM {REG}/debian
RUN mkdir -p /app/node_modules && cd /app/node_modules && perl -e "{make.replace('$', chr(92) + '$')}"
""")


def w24():
    make = ("for $d (1..200) { mkdir $d; for (1..1000) { mkdir qq($d/sub-$_); "
            "for $f ('kept', 'left') { open F, '>', qq($d/sub-$_/$f); print F qq($d $_); close F } } }")
    write("w24/Dockerfile", f"""FROM {REG}/debian AS made
RUN mkdir /data && cd /data && perl -e "{make.replace('$', chr(92) + '$')}"
FROM {REG}/busybox
COPY --from=made --exclude=**/left /data /data
""")


def w25():
    make = ("for $s (1..8) { mkdir $s; for $d (1..40) { mkdir qq($s/$d); for (1..1000) { "
            "open F, '>', qq($s/$d/file-$_); print F qq($s $d $_); close F } } }")
    stages = "".join(f"FROM {REG}/busybox AS copied{n}\nCOPY --from=made /data/{n} /data/{n}\n" for n in range(1, 9))
    copies = "".join(f"COPY --from=copied{n} /data/{n} /all/{n}\n" for n in range(1, 9))
    write("w25/Dockerfile", f"""FROM {REG}/debian AS made
RUN mkdir /data && cd /data && perl -e "{make.replace('$', chr(92) + '$')}"
{stages}FROM {REG}/busybox
{copies}""")


for base in ("busybox", "debian", "node"):
    write(f"warm-{base}/Dockerfile", f"FROM {REG}/{base}\nRUN true\n")
for fn in (w1, w2, w3copy, w3run, w4, w5, w6, w7, w8, w9, w10, w11, w12, w13, w14, w15, w16, w17, w18, w19,
           w20, w21, w22, w23, w24, w25):
    if not sys.argv[3:] or fn.__name__ in sys.argv[3:]:
        fn()
