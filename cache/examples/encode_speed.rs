//! Measures `encode` on the files of a directory, as one archive: `encode_speed DIR`.
//!
//! Prints MB/s (of tar) and the ratio for each compression and number of threads. The tar is held in memory, so that
//! compression is what is measured.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::time::Instant;

use rbuild_cache::layer::{
    Compression, DEFAULT_GZIP, DEFAULT_ZSTD, Encoded, Gzip, OverlayForm, ParentEntry, ParentView,
    ParentViewError, emit_tar, encode_on, scan_upper,
};
use rbuild_cache::path::RelPath;
use rbuild_cache::scratch::Scratch;

struct Nothing;

impl ParentView for Nothing {
    fn entry(&self, _path: &RelPath) -> Result<Option<ParentEntry>, ParentViewError> {
        Ok(None)
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir =
        std::env::args_os().nth(1).ok_or("usage: encode_speed DIR (a copy: sockets in it are removed)")?;
    let dir = std::fs::File::open(dir)?;
    let start = Instant::now();
    let diff = scan_upper(dir.as_fd(), OverlayForm::User, &Nothing, &Scratch::on(&dir)?)?;
    println!("scan   {:>7} entries  {:>6.0} ms", diff.len(), start.elapsed().as_secs_f64() * 1e3);
    let mut tar = Vec::new();
    emit_tar(dir.as_fd(), &diff, None, &mut tar)?;
    tar.clear();
    let start = Instant::now();
    emit_tar(dir.as_fd(), &diff, None, &mut tar)?;
    report("emit", tar.len() as u64, tar.len() as u64, start);
    let unpacked = tempfile::tempdir()?;
    let start = Instant::now();
    let target = std::fs::File::open(unpacked.path())?;
    rbuild_cache::layer::unpack(
        &tar[..],
        target.as_fd(),
        OverlayForm::User,
        &Default::default(),
        &Scratch::on(&target)?,
    )?;
    report("unpack", tar.len() as u64, tar.len() as u64, start);
    let levels = [1, 2, 3, 4, 6].map(|level| Compression::Gzip(Gzip::Level(level)));
    for compression in [Compression::None, DEFAULT_GZIP, DEFAULT_ZSTD].into_iter().chain(levels) {
        for threads in [1, 2] {
            let start = Instant::now();
            let source = |out: &mut dyn Write| out.write_all(&tar);
            let Encoded { size, uncompressed, .. } =
                encode_on(threads, source, compression, &mut io::sink())?;
            report(&format!("{} x{threads}", compression.params()), uncompressed, size, start);
        }
    }
    Ok(())
}

fn report(what: &str, uncompressed: u64, size: u64, start: Instant) {
    let speed = uncompressed as f64 / 1e6 / start.elapsed().as_secs_f64();
    println!("{what:<45} {speed:>7.0} MB/s  ratio {:.3}", uncompressed as f64 / size.max(1) as f64);
}
