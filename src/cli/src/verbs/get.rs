//! `ostler get`: lists objects, once or for as long as one looks.

use jiff::Timestamp;
use ostler_rpc::v1;
use serde_json::Value;

use crate::client::{Client, selector};
use crate::ctx::Ctx;
use crate::error::Error;
use crate::exit::Exit;
use crate::kinds::Kind;
use crate::output::Format;
use crate::output::json::{list, value, write_list, write_pretty, yaml};
use crate::output::jsonpath::Template;
use crate::output::rows::{self, Columns};
use crate::output::table::Printer;
use crate::targets;
use crate::views;
use crate::watch::{Change, Watcher};

/// List objects
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Kinds are processes (proc), jobs, cronjobs (cj), instances (inst), namespaces (ns), configmaps
(cm), secrets, sources (src), externals (ext) and events (ev); `all` means processes, jobs, cronjobs and instances.
A single object that is named is printed bare by -o json and yaml, everything else as a List.

Examples:
  ostler get processes
  ostler get instances -l app=web -o wide
  ostler get process/web -o yaml
  ostler get inst -o jsonpath='{range .items[*]}{.metadata.name} {.status.pid}{\"\\n\"}{end}'
  ostler get inst -A -w")]
pub(crate) struct Args {
    /// KIND, KIND,KIND, KIND NAME… or KIND/NAME…
    #[arg(required = true, value_name = "TARGET")]
    targets: Vec<String>,
    /// wide, json, yaml, name or jsonpath='{…}'
    #[arg(short, long, value_name = "FORMAT")]
    output: Option<Format>,
    /// Only those with these labels: a=b,c!=d,e in (f,g),!h
    #[arg(short = 'l', long, value_name = "LABELS")]
    selector: Option<String>,
    /// Only those with these fields: status.phase=Running,metadata.name!=web-0
    #[arg(long, value_name = "FIELDS")]
    field_selector: Option<String>,
    /// Of all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Go on showing what changes
    #[arg(short, long)]
    watch: bool,
    /// Show only what changes from now on
    #[arg(long)]
    watch_only: bool,
    /// No line of headers
    #[arg(long)]
    no_headers: bool,
    /// Order by a field: .metadata.creationTimestamp
    #[arg(long, value_name = "PATH", value_parser = Template::parse_path)]
    sort_by: Option<Template>,
    /// A column with the labels
    #[arg(long)]
    show_labels: bool,
    /// Succeed when a named object does not exist
    #[arg(long)]
    ignore_not_found: bool,
    /// Show the values of secrets
    #[arg(long)]
    show_secrets: bool,
    /// Show metadata.managedFields: who set which field
    #[arg(long)]
    show_managed_fields: bool,
}

/// How objects are shown.
#[derive(Debug, Default)]
pub(crate) struct Show {
    pub(crate) format: Format,
    pub(crate) no_headers: bool,
    pub(crate) all_namespaces: bool,
    pub(crate) labels: bool,
    pub(crate) sort_by: Option<Template>,
    /// Names as KIND/NAME.
    pub(crate) kinds: bool,
    /// With metadata.managedFields.
    pub(crate) managed_fields: bool,
}

/// What a watch shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Watching {
    /// What exists, then what changes.
    Everything,
    Changes,
}

pub(crate) async fn run(ctx: &mut Ctx, args: Args) -> Result<Exit, Error> {
    let targets = targets::parse(&args.targets)?;
    ctx.settings.show_secrets = args.show_secrets;
    let show = Show {
        format: args.output.clone().unwrap_or_default(),
        no_headers: args.no_headers,
        all_namespaces: args.all_namespaces,
        labels: args.show_labels,
        sort_by: args.sort_by.clone(),
        kinds: targets.len() > 1,
        managed_fields: args.show_managed_fields,
    };
    let named = targets.iter().any(|target| !target.names.is_empty());
    if named && (args.selector.is_some() || args.all_namespaces) {
        return Err(Error::usage("names cannot be combined with -l or -A", "name the objects, or select them"));
    }
    let namespace = if args.all_namespaces { String::new() } else { ctx.settings.namespace().to_owned() };
    let select = |kind: Kind| v1::Selector {
        labels: args.selector.clone().unwrap_or_default(),
        fields: args.field_selector.clone().unwrap_or_default(),
        ..selector(kind, &namespace)
    };
    if args.watch || args.watch_only {
        let [target] = targets.as_slice() else {
            return Err(Error::usage("only one kind at a time can be watched", "watch one of them"));
        };
        let watching = if args.watch_only { Watching::Changes } else { Watching::Everything };
        let wanted = v1::Selector { names: target.names.clone(), ..select(target.kind) };
        watch(ctx, target.kind, wanted, &show, watching).await?;
        return Ok(Exit::Ok);
    }
    let mut client = Client::connect(&ctx.settings).await?;
    let mut groups: Vec<(Kind, Vec<v1::Object>)> = Vec::new();
    let mut missing: Option<Error> = None;
    for target in &targets {
        let mut objects = Vec::new();
        if target.names.is_empty() {
            objects = client.list(select(target.kind)).await?;
        }
        for name in &target.names {
            match client.get(target.kind, &namespace, name).await {
                Ok(object) => objects.push(object),
                Err(error) if error.is_not_found() && args.ignore_not_found => {}
                Err(error) if error.is_not_found() => {
                    // What exists is shown all the same; the last of several errors ends the command.
                    if let Some(earlier) = missing.replace(error) {
                        earlier.report(&mut *ctx.err)?;
                    }
                }
                Err(error) => return Err(error),
            }
        }
        groups.push((target.kind, objects));
    }
    let found: usize = groups.iter().map(|(_, objects)| objects.len()).sum();
    let single = found == 1 && named && targets.iter().map(|target| target.names.len()).sum::<usize>() == 1;
    if found > 0 || !named {
        print_objects(ctx, &groups, &show, single)?;
    }
    match missing {
        Some(error) => {
            ctx.out.flush()?;
            Err(error)
        }
        None => Ok(Exit::Ok),
    }
}

/// Prints objects in any format. `single`: bare instead of as a List.
pub(crate) fn print_objects(
    ctx: &mut Ctx,
    groups: &[(Kind, Vec<v1::Object>)],
    show: &Show,
    single: bool,
) -> Result<(), Error> {
    let objects = || groups.iter().flat_map(|(_, objects)| objects);
    match &show.format {
        Format::Table | Format::Wide => return print_tables(ctx, groups, show),
        Format::Name => {
            for (kind, objects) in groups {
                for object in objects {
                    let name = views::name(&object.json).unwrap_or_default();
                    writeln!(ctx.out, "{}/{name}", kind.singular())?;
                }
            }
            return Ok(());
        }
        // Only a terminal, sorting and what is left out need the objects as trees.
        Format::Json
            if !single
                && !ctx.terminal.stdout
                && show.sort_by.is_none()
                && (show.managed_fields || groups.iter().all(|(kind, _)| !is_managed(*kind))) =>
        {
            write_list(&mut *ctx.out, objects())?;
            return Ok(());
        }
        Format::Json | Format::Yaml | Format::JsonPath(_) => {}
    }
    let mut items = objects().map(value).collect::<Result<Vec<_>, _>>()?;
    if !show.managed_fields {
        items.iter_mut().for_each(hide_managed_fields);
    }
    if let Some(path) = &show.sort_by {
        items.sort_by(|a, b| compare(path.find(a).first().copied(), path.find(b).first().copied()));
    }
    let whole = if single { items.remove(0) } else { list(&items) };
    match &show.format {
        Format::Json => write_pretty(&mut *ctx.out, &whole)?,
        Format::Yaml => ctx.out.write_all(yaml(&whole)?.as_bytes())?,
        Format::JsonPath(template) => ctx.out.write_all(template.render(&whole).as_bytes())?,
        Format::Table | Format::Wide | Format::Name => {}
    }
    Ok(())
}

/// Whether it is noted who set which field of objects of the kind: of what Ostler makes, it is not.
fn is_managed(kind: Kind) -> bool {
    !matches!(kind, Kind::Instance | Kind::Event)
}

fn hide_managed_fields(object: &mut Value) {
    if let Some(metadata) = object["metadata"].as_object_mut() {
        metadata.remove("managedFields");
    }
}

/// Numbers by size, everything else as text; what is missing comes first.
fn compare(a: Option<&Value>, b: Option<&Value>) -> std::cmp::Ordering {
    match (a, b) {
        (Some(a), Some(b)) => match (a.as_f64(), b.as_f64()) {
            (Some(a), Some(b)) => a.total_cmp(&b),
            _ => crate::output::jsonpath::text(a).cmp(&crate::output::jsonpath::text(b)),
        },
        (a, b) => a.is_some().cmp(&b.is_some()),
    }
}

impl Show {
    fn columns(&self) -> Columns {
        Columns {
            wide: self.format == Format::Wide,
            namespace: self.all_namespaces,
            labels: self.labels,
            kind: self.kinds,
        }
    }
}

fn print_tables(ctx: &mut Ctx, groups: &[(Kind, Vec<v1::Object>)], show: &Show) -> Result<(), Error> {
    let now = Timestamp::now();
    let columns = show.columns();
    let mut first = true;
    for (kind, objects) in groups.iter().filter(|(_, objects)| !objects.is_empty()) {
        let mut rows = Vec::with_capacity(objects.len() + 1);
        if let Some(path) = &show.sort_by {
            let mut trees =
                objects.iter().map(|object| Ok((value(object)?, object))).collect::<Result<Vec<_>, Error>>()?;
            trees.sort_by(|a, b| compare(path.find(&a.0).first().copied(), path.find(&b.0).first().copied()));
            for (_, object) in trees {
                rows.push(rows::row(*kind, &object.json, columns, now)?);
            }
        } else {
            for object in objects {
                rows.push(rows::row(*kind, &object.json, columns, now)?);
            }
            rows.sort_by(|a, b| a.order.cmp(&b.order));
        }
        if !std::mem::take(&mut first) {
            writeln!(ctx.out)?;
        }
        let mut cells: Vec<_> = rows.into_iter().map(|row| row.cells).collect();
        if !show.no_headers {
            cells.insert(0, rows::headers(*kind, columns));
        }
        Printer::new(ctx.terminal.color).print(&mut *ctx.out, &cells)?;
    }
    if first {
        let namespaced = groups.iter().any(|(kind, _)| kind.is_namespaced());
        if show.all_namespaces || !namespaced {
            ctx.note("No resources found")?;
        } else {
            let namespace = ctx.settings.namespace().to_owned();
            ctx.note(format_args!("No resources found in {namespace} namespace."))?;
        }
    }
    Ok(())
}

/// Prints objects as they change, until interrupted.
pub(crate) async fn watch(
    ctx: &mut Ctx,
    kind: Kind,
    wanted: v1::Selector,
    show: &Show,
    watching: Watching,
) -> Result<(), Error> {
    let mut watcher = Watcher::new(&ctx.settings, wanted);
    let mut printer = Printer::new(ctx.terminal.color);
    let columns = show.columns();
    let headers = !show.no_headers;
    // What exists comes at once, and is drawn as one table.
    let mut first = Vec::new();
    let mut synced = false;
    let mut drawn = false;
    loop {
        let change = watcher.next().await?;
        match watcher.take_missed() {
            0 => {}
            1 => ctx.note("1 event was missed: it was not read in time")?,
            missed => ctx.note(format_args!("{missed} events were missed: they were not read in time"))?,
        }
        let (seen, gone) = match change {
            Change::Present(seen) => (seen, false),
            Change::Gone(seen) => (seen, true),
            Change::Synced => {
                if !std::mem::replace(&mut synced, true) && watching == Watching::Everything {
                    let objects = std::mem::take(&mut first);
                    if matches!(show.format, Format::Table | Format::Wide) {
                        let now = Timestamp::now();
                        let mut rows = Vec::new();
                        for object in &objects {
                            let object: &v1::Object = object;
                            rows.push(rows::row(kind, &object.json, columns, now)?);
                        }
                        rows.sort_by(|a, b| a.order.cmp(&b.order));
                        let mut cells: Vec<_> = rows.into_iter().map(|row| row.cells).collect();
                        if headers && !cells.is_empty() {
                            cells.insert(0, rows::headers(kind, columns));
                            drawn = true;
                        }
                        printer.print(&mut *ctx.out, &cells)?;
                    } else {
                        for object in &objects {
                            one(ctx, kind, object, show)?;
                        }
                    }
                    ctx.out.flush()?;
                }
                continue;
            }
        };
        let object = v1::Object { json: seen.json, revision: seen.revision };
        if !synced {
            first.push(object);
            continue;
        }
        if matches!(show.format, Format::Table | Format::Wide) {
            let mut cells = rows::row(kind, &object.json, columns, Timestamp::now())?.cells;
            if gone && kind != Kind::Event {
                mark_gone(kind, columns, &mut cells);
            } else if gone {
                // Old events leave the bounded history: that did not happen to anybody.
                continue;
            }
            let mut lines = vec![cells];
            if headers && !std::mem::replace(&mut drawn, true) {
                lines.insert(0, rows::headers(kind, columns));
            }
            printer.print(&mut *ctx.out, &lines)?;
        } else if !gone {
            one(ctx, kind, &object, show)?;
        }
        ctx.out.flush()?;
    }
}

/// Shows in the status column that the object is no more.
fn mark_gone(kind: Kind, columns: Columns, cells: &mut [crate::output::table::Cell]) {
    let at = rows::headers(kind, columns).iter().position(|header| header.text == "STATUS");
    if let Some(cell) = at.and_then(|at| cells.get_mut(at)) {
        *cell = "Deleted".into();
    }
}

fn one(ctx: &mut Ctx, kind: Kind, object: &v1::Object, show: &Show) -> Result<(), Error> {
    match &show.format {
        Format::Name => {
            writeln!(ctx.out, "{}/{}", kind.singular(), views::name(&object.json).unwrap_or_default())?;
        }
        Format::Json | Format::Yaml | Format::JsonPath(_) => {
            let mut object = value(object)?;
            if !show.managed_fields {
                hide_managed_fields(&mut object);
            }
            match &show.format {
                Format::Json => write_pretty(&mut *ctx.out, &object)?,
                Format::Yaml => write!(ctx.out, "---\n{}", yaml(&object)?)?,
                Format::JsonPath(template) => write!(ctx.out, "{}", template.render(&object))?,
                Format::Name | Format::Table | Format::Wide => {}
            }
        }
        Format::Table | Format::Wide => {}
    }
    Ok(())
}
