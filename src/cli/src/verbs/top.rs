//! `ostler top`: CPU time and memory of instances, read from the kernel when asked.

use std::collections::HashMap;
use std::time::Duration;

use ostler_rpc::v1;

use crate::client::{Client, selector};
use crate::ctx::Ctx;
use crate::error::Error;
use crate::exit::Exit;
use crate::kinds::{self, Kind};
use crate::output::table::{Cell, Printer};

/// Show CPU and memory of instances
#[derive(Debug, clap::Args)]
#[command(after_help = "\
CPU is measured over half a second (with -w over a second), of the whole process tree; 1000m
is one core.

Examples:
  ostler top
  ostler top instances -w --sort-by cpu
  ostler top -l app=web --no-headers")]
pub(crate) struct Args {
    /// instances
    #[arg(value_name = "KIND", default_value = "instances", value_parser = instances)]
    kind: Kind,
    /// Only these
    names: Vec<String>,
    /// Refresh every second
    #[arg(short, long)]
    watch: bool,
    /// Those with these labels
    #[arg(short = 'l', long, value_name = "LABELS")]
    selector: Option<String>,
    /// Of all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Largest first
    #[arg(long, value_enum)]
    sort_by: Option<Order>,
    /// Only the rows
    #[arg(long)]
    no_headers: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Order {
    Cpu,
    Memory,
}

fn instances(word: &str) -> Result<Kind, String> {
    match kinds::parse(word) {
        Ok(Kind::Instance) => Ok(Kind::Instance),
        Ok(kind) => Err(format!("{} have no usage of their own; write instances", kind.plural())),
        Err(error) => Err(error.to_string()),
    }
}

pub(crate) async fn run(ctx: &mut Ctx, args: Args) -> Result<Exit, Error> {
    let mut client = Client::connect(&ctx.settings).await?;
    let namespace = if args.all_namespaces { String::new() } else { ctx.settings.namespace().to_owned() };
    let wanted = v1::Selector {
        names: args.names.clone(),
        labels: args.selector.clone().unwrap_or_default(),
        ..selector(args.kind, &namespace)
    };
    let mut before = sample(&mut client, &wanted).await?;
    let mut pause = Duration::from_millis(500);
    loop {
        tokio::time::sleep(pause).await;
        let after = sample(&mut client, &wanted).await?;
        if args.watch && ctx.terminal.stdout {
            write!(ctx.out, "\x1b[H\x1b[2J")?;
        }
        if after.instances.is_empty() && !args.watch {
            ctx.note("No running instances found.")?;
        } else {
            draw(ctx, &args, &before, &after)?;
        }
        ctx.out.flush()?;
        if !args.watch {
            return Ok(Exit::Ok);
        }
        before = after;
        pause = Duration::from_secs(1);
    }
}

async fn sample(client: &mut Client, wanted: &v1::Selector) -> Result<v1::UsageResponse, Error> {
    let mut api = client.api.clone();
    client.once(api.usage(v1::UsageRequest { selector: Some(wanted.clone()) })).await
}

/// One line: who, and how much.
#[derive(Debug, PartialEq)]
struct Usage {
    namespace: String,
    name: String,
    /// Thousandths of a core.
    millicores: u64,
    rss: u64,
    processes: u32,
    threads: u32,
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
                rss: now.rss,
                processes: now.processes,
                threads: now.threads,
            }
        })
        .collect()
}

/// "12Mi" as kubectl rounds, "1.5Gi" where that tells more.
fn bytes(count: u64) -> String {
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

fn draw(ctx: &mut Ctx, args: &Args, before: &v1::UsageResponse, after: &v1::UsageResponse) -> Result<(), Error> {
    let mut usages = usage(before, after);
    match args.sort_by {
        Some(Order::Cpu) => usages.sort_by_key(|usage| std::cmp::Reverse(usage.millicores)),
        Some(Order::Memory) => usages.sort_by_key(|usage| std::cmp::Reverse(usage.rss)),
        None => usages.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name))),
    }
    let mut rows: Vec<Vec<Cell>> = Vec::new();
    if !args.no_headers {
        if let Some(node) = &after.node {
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
        let headers = ["NAME", "CPU(cores)", "CPU%", "MEMORY(bytes)", "PROCESSES", "THREADS"];
        let namespace = args.all_namespaces.then_some("NAMESPACE");
        rows.push(namespace.into_iter().chain(headers).map(Cell::from).collect());
    }
    for usage in usages {
        let mut cells: Vec<Cell> = Vec::new();
        if args.all_namespaces {
            cells.push(usage.namespace.into());
        }
        cells.push(usage.name.into());
        cells.push(format!("{}m", usage.millicores).into());
        cells.push(format!("{:.1}%", usage.millicores as f64 / 10.0).into());
        cells.push(bytes(usage.rss).into());
        cells.push(usage.processes.to_string().into());
        cells.push(usage.threads.to_string().into());
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
    fn memory_is_in_binary_units() {
        assert_eq!(bytes(2048), "2Ki");
        assert_eq!(bytes(5 << 20), "5Mi");
        assert_eq!(bytes(3 << 29), "1.5Gi");
    }
}
