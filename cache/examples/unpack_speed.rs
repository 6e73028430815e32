//! Measures what unpacking a layer costs beside the least that it can: `unpack_speed BLOB [RUNS]`.
//!
//! The floor reads the blob (gzip), hashes it, inflates it, hashes the tar, and makes the same directories and files with
//! bytes of the same length: nothing is checked, remembered or given an owner. Prints the medians of wall and CPU time of
//! both and their ratio; the directories are below `$TMPDIR`, removed between runs.

use std::fs::{self, File};
use std::io::{self, BufReader, Read, Write as _};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::time::{Duration, Instant};

use flate2::bufread::MultiGzDecoder;
use rbuild_cache::layer::{Change, LayerDiff, Limits, OverlayForm, unpack_blob};
use rbuild_cache::scratch::Scratch;
use rbuild_oci::{DiffId, Digest, Sha256};

const BLOCK_BYTES: usize = 256 << 10;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Wall and CPU time of all threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Cost {
    cpu: Duration,
    wall: Duration,
}

fn main() -> Result<()> {
    let mut args = std::env::args_os().skip(1);
    let blob = args.next().ok_or("usage: unpack_speed BLOB [RUNS]")?;
    let runs = args.next().map_or(Ok(5), |runs| runs.to_string_lossy().parse::<usize>())?;
    let blob = Path::new(&blob);
    let temp = tempfile::tempdir()?;
    let (listing, wanted) = ours(blob, &temp.path().join("first"))?;
    let (mut floor_costs, mut our_costs) = (Vec::new(), Vec::new());
    for run in 0..runs {
        let dir = temp.path().join(format!("floor{run}"));
        let (cost, found) = measured(|| floor(blob, &listing, &dir))?;
        assert_eq!(found, wanted, "both read the same");
        floor_costs.push(cost);
        fs::remove_dir_all(&dir)?;
        let dir = temp.path().join(format!("ours{run}"));
        let (cost, _) = measured(|| ours(blob, &dir))?;
        our_costs.push(cost);
        fs::remove_dir_all(&dir)?;
    }
    let (floor, ours) = (median(floor_costs), median(our_costs));
    println!("{} entries", listing.len());
    for (what, cost) in [("floor", floor), ("unpack", ours)] {
        println!("{what:<7} wall {:>6} ms  cpu {:>6} ms", cost.wall.as_millis(), cost.cpu.as_millis());
    }
    println!("cpu: {:.2} of the floor", ours.cpu.as_secs_f64() / floor.cpu.as_secs_f64());
    Ok(())
}

fn ours(blob: &Path, dir: &Path) -> Result<(LayerDiff, (Digest, DiffId))> {
    fs::create_dir(dir)?;
    let root = File::open(dir)?;
    let (limits, scratch) = (Limits::default(), Scratch::on(&root)?);
    let (unpacked, sums) =
        unpack_blob(File::open(blob)?, None, root.as_fd(), OverlayForm::User, &limits, &scratch)?;
    Ok((unpacked.diff, (sums.digest, sums.diff_id)))
}

fn floor(blob: &Path, listing: &LayerDiff, dir: &Path) -> Result<(Digest, DiffId)> {
    let mut decoder = MultiGzDecoder::new(BufReader::with_capacity(
        128 << 10,
        Hashed { inner: File::open(blob)?, hash: Sha256::new() },
    ));
    let (mut tar, mut block) = (Sha256::new(), vec![0; BLOCK_BYTES]);
    loop {
        match decoder.read(&mut block)? {
            0 => break,
            count => tar.update(&block[..count]),
        }
    }
    let digest = decoder.into_inner().into_inner().hash.finish();
    fs::create_dir(dir)?;
    for entry in listing {
        let entry = entry?;
        let path = dir.join(entry.path.to_string());
        match &entry.change {
            Change::Dir { .. } => fs::create_dir_all(&path)?,
            Change::File { size, .. } => {
                let (mut file, mut left) = (File::create(&path)?, *size);
                while left > 0 {
                    let count = left.min(BLOCK_BYTES as u64) as usize;
                    file.write_all(&block[..count])?;
                    left -= count as u64;
                }
            }
            _ => {}
        }
    }
    Ok((digest, DiffId(tar.finish())))
}

struct Hashed {
    inner: File,
    hash: Sha256,
}

impl Read for Hashed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hash.update(&buffer[..count]);
        Ok(count)
    }
}

fn measured<T>(work: impl FnOnce() -> Result<T>) -> Result<(Cost, T)> {
    let (cpu, started) = (cpu()?, Instant::now());
    let done = work()?;
    Ok((Cost { wall: started.elapsed(), cpu: self::cpu()?.saturating_sub(cpu) }, done))
}

/// User and system time of the process so far, in the kernel's ticks of 10 ms.
fn cpu() -> Result<Duration> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    let fields = stat.rsplit_once(')').ok_or("no such field")?.1;
    let ticks = fields.split_whitespace().skip(11).take(2).map(str::parse::<u64>);
    Ok(Duration::from_millis(10 * ticks.sum::<std::result::Result<u64, _>>()?))
}

fn median(mut costs: Vec<Cost>) -> Cost {
    costs.sort_unstable();
    costs[costs.len() / 2]
}
