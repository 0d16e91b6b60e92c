//! Measures the store on the disk that holds the given directory (by default the current one).
//!
//! `cargo run --release -p ostler-store --example bench [DIR]`

use std::error::Error;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use ostler_store::{DiskStore, Durability, Expect, Key, Op, Options, Store};

type Outcome<T> = Result<T, Box<dyn Error>>;

const VALUE_BYTES: usize = 1_500;

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [word, dir] = &arguments[..]
        && word == "--resident"
    {
        return resident(Path::new(dir));
    }
    let base = arguments.first().map_or_else(|| PathBuf::from("."), PathBuf::from);
    let dir = base.join(format!("store-bench-{}", std::process::id()));
    fs::create_dir(&dir)?;
    let outcome = bench(&dir);
    fs::remove_dir_all(&dir)?;
    outcome
}

fn bench(dir: &Path) -> Outcome<()> {
    let raw = raw(&dir.join("raw"))?;
    report("raw append + fdatasync", &raw);
    for durability in [Durability::Durable, Durability::Crash] {
        let times = one_client(&dir.join(format!("{durability:?}")), durability)?;
        report(&format!("one client, {durability:?}"), &times);
        if durability == Durability::Durable {
            let ratio = percentile(&times, 50).as_secs_f64() / percentile(&raw, 50).as_secs_f64();
            println!("{:32} {ratio:.2} x raw", "");
        }
    }
    println!("{:32} {:.0} commits/s", "64 threads, Durable", many_clients(&dir.join("many"))?);
    let mut settled = Vec::new();
    for count in [10, 1_000, 10_000] {
        let store = dir.join(format!("with-{count}"));
        fill(&store, count)?;
        println!("{:32} {:?}", format!("open {count} entries, closed"), best_open(&store)?);
        let killed = dir.join(format!("killed-{count}"));
        fs::create_dir_all(&killed)?;
        let opened = DiskStore::open(&Options::new(store.join("store")))?;
        copy(&store, &killed)?;
        drop(opened);
        let begin = Instant::now();
        let reopened = DiskStore::open(&Options::new(killed.join("store")))?;
        println!("{:32} {:?}", format!("open {count} entries, killed"), begin.elapsed());
        drop(reopened);
        let output = Command::new(std::env::current_exe()?).arg("--resident").arg(&store).output()?;
        let kib: f64 = String::from_utf8(output.stdout)?.trim().parse()?;
        println!("{:32} {kib:.0} KiB", format!("resident with {count} entries"));
        settled.push((count, kib));
    }
    if let [(few, before), .., (many, after)] = settled[..] {
        let each = (after - before) * 1024.0 / f64::from(many - few);
        println!("{:32} {each:.0} bytes = {:.2} x value", "resident per entry", each / VALUE_BYTES as f64);
    }
    Ok(())
}

fn raw(path: &Path) -> Outcome<Vec<Duration>> {
    let mut file = File::create(path)?;
    let data = vec![7; VALUE_BYTES];
    let mut times = Vec::new();
    for _ in 0..1_500 {
        let begin = Instant::now();
        file.write_all(&data)?;
        file.sync_data()?;
        times.push(begin.elapsed());
    }
    Ok(times)
}

fn op(n: usize) -> Op {
    let key = Key::new("processes", "default", &format!("web-{n:05}"));
    Op::put(key, vec![n as u8; VALUE_BYTES], Expect::Any)
}

fn one_client(dir: &Path, durability: Durability) -> Outcome<Vec<Duration>> {
    let store = DiskStore::open(&Options::new(dir.join("store")))?;
    let mut times = Vec::new();
    for n in 0..2_000 {
        let begin = Instant::now();
        store.commit(vec![op(n % 500)], durability).wait_blocking()?;
        times.push(begin.elapsed());
    }
    Ok(times.split_off(500))
}

fn many_clients(dir: &Path) -> Outcome<f64> {
    const THREADS: usize = 64;
    const EACH: usize = 1_000;
    let store = DiskStore::open(&Options::new(dir.join("store")))?;
    let begin = Instant::now();
    let failed = std::thread::scope(|scope| {
        let store = &store;
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| {
                scope.spawn(move || {
                    (0..EACH).try_for_each(|n| {
                        let op = op(thread * 20 + n % 20);
                        store.commit(vec![op], Durability::Durable).wait_blocking().map(drop)
                    })
                })
            })
            .collect();
        threads.into_iter().find_map(|thread| thread.join().ok()?.err())
    });
    match failed {
        Some(error) => Err(error.into()),
        None => Ok((THREADS * EACH) as f64 / begin.elapsed().as_secs_f64()),
    }
}

fn fill(dir: &Path, count: i32) -> Outcome<()> {
    let store = DiskStore::open(&Options::new(dir.join("store")))?;
    for n in 0..count {
        drop(store.commit(vec![op(n as usize)], Durability::Lazy));
    }
    store.close()?;
    Ok(())
}

fn best_open(dir: &Path) -> Outcome<Duration> {
    let mut best = Duration::MAX;
    for _ in 0..5 {
        let begin = Instant::now();
        let store = DiskStore::open(&Options::new(dir.join("store")))?;
        best = best.min(begin.elapsed());
        drop(store);
    }
    Ok(best)
}

/// Prints this process's resident memory in KiB with the store open.
fn resident(dir: &Path) -> Outcome<()> {
    let store = DiskStore::open(&Options::new(dir.join("store")))?;
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()).ok_or("no VmRSS")?;
    println!("{kib}");
    drop(store);
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Outcome<()> {
    for item in fs::read_dir(from)? {
        let item = item?;
        let target = to.join(item.file_name());
        if item.file_type()?.is_dir() {
            fs::create_dir_all(&target)?;
            copy(&item.path(), &target)?;
        } else {
            fs::copy(item.path(), target)?;
        }
    }
    Ok(())
}

fn percentile(times: &[Duration], percent: usize) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    sorted[(sorted.len() - 1) * percent / 100]
}

fn report(name: &str, times: &[Duration]) {
    println!("{name:32} p50 {:?}  p99 {:?}", percentile(times, 50), percentile(times, 99));
}
