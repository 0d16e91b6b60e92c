//! `ostler top`: what instances use, once or as it changes.

use std::collections::HashMap;
use std::time::Duration;

use ostler_rpc::v1;
use serde_json::{Value, json};

use crate::client::{Client, selector};
use crate::ctx::Ctx;
use crate::error::Error;
use crate::exit::Exit;
use crate::kinds::{self, Kind};
use crate::output::json::write_pretty;
use crate::output::table::{Cell, Printer};

/// Show what instances use: CPU, memory, files, storage
#[derive(Debug, clap::Args)]
#[command(after_help = "\
On a terminal it goes on until Ctrl-C, with a line of the last half hour for each instance;
else, and with --once, it prints one table. Everything is of the whole process tree. CPU is
measured over half a second (going on, over a second); 1000m is one core.

Examples:
  ostler top
  ostler top -A --sort-by memory
  ostler top -l app=web --once --no-headers
  ostler top instances web-0 --pss -o json")]
pub(crate) struct Args {
    /// instances, or externals
    #[arg(value_name = "KIND", default_value = "instances", value_parser = instances)]
    kind: Kind,
    /// Only these
    names: Vec<String>,
    /// Go on, also when the output is no terminal
    #[arg(short, long, conflicts_with = "once")]
    watch: bool,
    /// One table, also on a terminal
    #[arg(long)]
    once: bool,
    /// Those with these labels
    #[arg(short = 'l', long, value_name = "LABELS")]
    selector: Option<String>,
    /// Of all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Largest first; by name unless given
    #[arg(long, value_enum)]
    sort_by: Option<Order>,
    /// Also memory with shared pages divided among those who share them, which takes the kernel longer to tell
    #[arg(long)]
    pss: bool,
    /// Only the rows
    #[arg(long)]
    no_headers: bool,
    /// Print JSON
    #[arg(short, long, value_parser = ["json"], conflicts_with = "watch")]
    output: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Order {
    Name,
    Cpu,
    Memory,
    Files,
    /// Bytes read and written
    Io,
    Processes,
}

fn instances(word: &str) -> Result<Kind, String> {
    match kinds::parse(word) {
        Ok(kind @ (Kind::Instance | Kind::External)) => Ok(kind),
        Ok(kind) => Err(format!("{} have no usage of their own; write instances or externals", kind.plural())),
        Err(error) => Err(error.to_string()),
    }
}

pub(crate) async fn run(ctx: &mut Ctx, args: Args) -> Result<Exit, Error> {
    let mut client = Client::connect(&ctx.settings).await?;
    let namespace = if args.all_namespaces { String::new() } else { ctx.settings.namespace().to_owned() };
    let selector = v1::Selector {
        names: args.names.clone(),
        labels: args.selector.clone().unwrap_or_default(),
        ..selector(args.kind, &namespace)
    };
    let wanted = v1::UsageRequest { selector: Some(selector), pss: args.pss };
    let live = args.watch || (ctx.terminal.stdout && !args.once && args.output.is_none());
    let mut before = sample(&mut client, &wanted).await?;
    let mut pause = Duration::from_millis(500);
    let mut lines = Lines::default();
    loop {
        tokio::time::sleep(pause).await;
        let after = sample(&mut client, &wanted).await?;
        let usages = usage(&before, &after);
        if args.output.is_some() {
            let items: Vec<_> = usages.iter().map(Usage::json).collect();
            write_pretty(&mut *ctx.out, &json!({"items": items, "node": node_json(after.node.as_ref())}))?;
            return Ok(Exit::Ok);
        }
        if live && ctx.terminal.stdout {
            lines.extend(&usages);
            write!(ctx.out, "\x1b[H\x1b[2J")?;
        }
        if after.instances.is_empty() && !live {
            ctx.note("No running instances found.")?;
        } else {
            draw(ctx, &args, usages, after.node.as_ref(), (live && ctx.terminal.stdout).then_some(&lines))?;
        }
        ctx.out.flush()?;
        if !live {
            return Ok(Exit::Ok);
        }
        before = after;
        pause = Duration::from_secs(1);
    }
}

async fn sample(client: &mut Client, wanted: &v1::UsageRequest) -> Result<v1::UsageResponse, Error> {
    let mut api = client.api.clone();
    client.once(api.usage(wanted.clone())).await
}

/// Who, and how much.
#[derive(Debug)]
struct Usage {
    namespace: String,
    name: String,
    /// Thousandths of a core.
    millicores: u64,
    told: v1::InstanceUsage,
}

impl Usage {
    fn io(&self) -> u64 {
        self.told.read_bytes.unwrap_or(0) + self.told.written_bytes.unwrap_or(0)
    }

    fn json(&self) -> Value {
        let told = &self.told;
        let network = match &told.network {
            Some(v1::instance_usage::Network::NetworkCounted(counted)) => {
                json!({"received": counted.received, "sent": counted.sent})
            }
            Some(v1::instance_usage::Network::NetworkUnsupported(why)) => json!({"unsupported": why}),
            None => Value::Null,
        };
        json!({
            "namespace": self.namespace, "name": self.name, "pid": told.pid,
            "cpu": format!("{}m", self.millicores), "cpuNanos": told.cpu_time,
            "rss": told.rss, "pss": told.pss, "processes": told.processes, "threads": told.threads,
            "openFiles": told.open_files, "readBytes": told.read_bytes, "writtenBytes": told.written_bytes,
            "network": network, "rssPerHour": told.rss_per_hour, "memoryLimitInSeconds": told.memory_limit_in,
        })
    }
}

fn node_json(node: Option<&v1::NodeUsage>) -> Value {
    node.map_or(Value::Null, |node| {
        json!({
            "cpus": node.cpus, "load1": node.load1,
            "memoryTotal": node.memory_total, "memoryAvailable": node.memory_available,
        })
    })
}

/// The difference of two samples.
fn usage(before: &v1::UsageResponse, after: &v1::UsageResponse) -> Vec<Usage> {
    let key = |usage: &v1::InstanceUsage| {
        let reference = usage.instance.clone().unwrap_or_default();
        (reference.namespace, reference.name, usage.pid)
    };
    let earlier: HashMap<_, u64> = before.instances.iter().map(|usage| (key(usage), usage.cpu_time)).collect();
    let elapsed = u64::try_from(after.at - before.at).unwrap_or(0).max(1);
    let per = |time: u64| (u128::from(time) * 1000 / u128::from(elapsed)) as u64;
    after
        .instances
        .iter()
        .map(|now| {
            let key = key(now);
            // A process that is new since the first sample has used all its time in between.
            let spent = now.cpu_time.saturating_sub(earlier.get(&key).copied().unwrap_or(0));
            Usage {
                millicores: per(spent.min(elapsed.saturating_mul(1024))),
                namespace: key.0,
                name: key.1,
                told: now.clone(),
            }
        })
        .collect()
}

/// The lines of small blocks, by namespace and name: what the daemon kept of each minute, then what was seen since.
#[derive(Default)]
struct Lines(HashMap<(String, String), Line>);

#[derive(Default)]
struct Line {
    cpu: Vec<u64>,
    rss: Vec<u64>,
}

impl Lines {
    fn extend(&mut self, usages: &[Usage]) {
        for usage in usages {
            let line = self.0.entry((usage.namespace.clone(), usage.name.clone())).or_insert_with(|| Line {
                cpu: usage.told.cpu_history.iter().copied().map(u64::from).collect(),
                rss: usage.told.rss_history.clone(),
            });
            for (values, value) in [(&mut line.cpu, usage.millicores), (&mut line.rss, usage.told.rss)] {
                values.push(value);
                let surplus = values.len().saturating_sub(BLOCKS);
                values.drain(..surplus);
            }
        }
    }
}

/// How many blocks a line has.
const BLOCKS: usize = 16;

/// The values as blocks of eight heights, the largest the highest.
fn sparkline(values: &[u64]) -> String {
    const BLOCK: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let most = values.iter().copied().max().unwrap_or(0).max(1);
    values.iter().map(|value| BLOCK[(u128::from(*value) * 7 / u128::from(most)) as usize]).collect()
}

/// "12Mi" as kubectl rounds, "1.5Gi" where that tells more.
pub(crate) fn bytes(count: u64) -> String {
    const KI: u64 = 1 << 10;
    const MI: u64 = 1 << 20;
    const GI: u64 = 1 << 30;
    if count >= 10 * GI {
        format!("{}Gi", count / GI)
    } else if count >= GI {
        format!("{:.1}Gi", count as f64 / GI as f64)
    } else if count >= MI {
        format!("{}Mi", count / MI)
    } else {
        format!("{}Ki", count / KI)
    }
}

fn sort(usages: &mut [Usage], order: Option<Order>) {
    usages.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
    let size = |usage: &Usage| match order {
        None | Some(Order::Name) => 0,
        Some(Order::Cpu) => usage.millicores,
        Some(Order::Memory) => usage.told.rss,
        Some(Order::Files) => usage.told.open_files.unwrap_or(0).into(),
        Some(Order::Io) => usage.io(),
        Some(Order::Processes) => usage.told.processes.into(),
    };
    usages.sort_by_key(|usage| std::cmp::Reverse(size(usage)));
}

fn draw(
    ctx: &mut Ctx,
    args: &Args,
    mut usages: Vec<Usage>,
    node: Option<&v1::NodeUsage>,
    lines: Option<&Lines>,
) -> Result<(), Error> {
    sort(&mut usages, args.sort_by);
    let mut rows: Vec<Vec<Cell>> = Vec::new();
    if !args.no_headers {
        if let Some(node) = node {
            let used = node.memory_total.saturating_sub(node.memory_available);
            writeln!(
                ctx.out,
                "node: {} CPUs, load {:.2}, memory {} of {}\n",
                node.cpus,
                node.load1,
                bytes(used),
                bytes(node.memory_total)
            )?;
        }
        let mut headers = Vec::new();
        headers.extend(args.all_namespaces.then_some("NAMESPACE"));
        headers.extend(["NAME", "CPU(cores)", "CPU%", "MEMORY(bytes)"]);
        headers.extend(args.pss.then_some("PSS"));
        headers.extend(["FILES", "READ", "WRITTEN", "PROCESSES", "THREADS"]);
        if lines.is_some() {
            headers.extend(["CPU", "MEMORY"]);
        }
        rows.push(headers.into_iter().map(Cell::from).collect());
    }
    let or_unknown = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    for usage in usages {
        let told = &usage.told;
        let mut cells: Vec<Cell> = Vec::new();
        if args.all_namespaces {
            cells.push(usage.namespace.clone().into());
        }
        cells.push(usage.name.clone().into());
        cells.push(format!("{}m", usage.millicores).into());
        cells.push(format!("{:.1}%", usage.millicores as f64 / 10.0).into());
        cells.push(bytes(told.rss).into());
        if args.pss {
            cells.push(or_unknown(told.pss.map(bytes)).into());
        }
        cells.push(or_unknown(told.open_files.map(|count| count.to_string())).into());
        cells.push(or_unknown(told.read_bytes.map(bytes)).into());
        cells.push(or_unknown(told.written_bytes.map(bytes)).into());
        cells.push(told.processes.to_string().into());
        cells.push(told.threads.to_string().into());
        if let Some(line) = lines.and_then(|lines| lines.0.get(&(usage.namespace, usage.name))) {
            cells.push(sparkline(&line.cpu).into());
            cells.push(sparkline(&line.rss).into());
        }
        rows.push(cells);
    }
    Printer::new(ctx.terminal.color).print(&mut *ctx.out, &rows)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(at: i64, instances: &[(&str, i32, u64)]) -> v1::UsageResponse {
        let instances = instances
            .iter()
            .map(|(name, pid, cpu_time)| v1::InstanceUsage {
                instance: Some(v1::Reference { name: (*name).into(), ..v1::Reference::default() }),
                pid: *pid,
                cpu_time: *cpu_time,
                ..v1::InstanceUsage::default()
            })
            .collect();
        v1::UsageResponse { instances, node: None, at }
    }

    #[test]
    fn cpu_is_the_difference_over_the_time_between_samples() {
        let before = sample(0, &[("a", 1, 100_000_000), ("b", 2, 900_000_000)]);
        let after = sample(500_000_000, &[("a", 1, 350_000_000), ("b", 3, 50_000_000)]);
        let cpu: Vec<_> = usage(&before, &after).into_iter().map(|usage| (usage.name, usage.millicores)).collect();
        assert_eq!(cpu, [("a".to_owned(), 500), ("b".to_owned(), 100)]);
    }

    #[test]
    fn a_clock_that_stands_still_does_not_divide_by_zero() {
        assert!(usage(&sample(5, &[("a", 1, 0)]), &sample(5, &[("a", 1, 7)]))[0].millicores > 0);
    }

    #[test]
    fn the_largest_come_first_and_equals_by_name() {
        let mut all = usage(&sample(0, &[]), &sample(1000, &[("b", 1, 5), ("c", 2, 9), ("a", 3, 5)]));
        sort(&mut all, Some(Order::Cpu));
        let names = |all: &[Usage]| all.iter().map(|usage| usage.name.clone()).collect::<Vec<_>>();
        assert_eq!(names(&all), ["c", "a", "b"]);
        sort(&mut all, None);
        assert_eq!(names(&all), ["a", "b", "c"]);
    }

    #[test]
    fn lines_go_on_from_what_the_daemon_kept_and_stay_short() {
        let mut lines = Lines::default();
        let mut all = usage(&sample(0, &[]), &sample(1, &[("a", 1, 0)]));
        all[0].told.cpu_history = vec![100, 0];
        for millicores in [50, 200] {
            all[0].millicores = millicores;
            lines.extend(&all);
        }
        let key = (String::new(), "a".to_owned());
        assert_eq!(lines.0[&key].cpu, [100, 0, 50, 200]);
        assert_eq!(sparkline(&lines.0[&key].cpu), "▄▁▂█");
        assert_eq!(sparkline(&[0, 0]), "▁▁");
        for _ in 0..100 {
            lines.extend(&all);
        }
        assert_eq!(lines.0[&key].cpu.len(), BLOCKS);
    }

    #[test]
    fn memory_is_in_binary_units() {
        assert_eq!(bytes(2048), "2Ki");
        assert_eq!(bytes(5 << 20), "5Mi");
        assert_eq!(bytes(3 << 29), "1.5Gi");
    }
}
