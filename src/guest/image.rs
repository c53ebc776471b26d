//! `guest image`: building guest packages, with progress for a person who waits.

use crate::args::{GuestType, ImageBuildArgs};
use crate::outcome::{EXIT_FAILURE, EXIT_INTERRUPTED, Outcome};
use crate::platform::{self, Interrupts};
use anyhow::{Context as _, bail};
use images::{BuildOptions, Progress, Store};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use std::fmt;
use std::io::{self, BufRead as _, IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

/// A package in the list.
#[derive(Debug, Serialize, PartialEq, Eq)]
pub(crate) struct ImageSummary {
    name: String,
    path: PathBuf,
    disk_bytes: u64,
}

/// What `guest image` comes to.
#[derive(Debug, Serialize, PartialEq, Eq)]
pub(crate) enum ImageOutcome {
    Built(PathBuf),
    List {
        images: Vec<ImageSummary>,
    },
    Removed(String),
    Failed(String),
    /// A signal asked for an end; the store is as it was.
    Interrupted,
}

impl Outcome for ImageOutcome {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Failed(_) => EXIT_FAILURE,
            Self::Interrupted => EXIT_INTERRUPTED,
            Self::Built(_) | Self::List { .. } | Self::Removed(_) => 0,
        }
    }
}

impl fmt::Display for ImageOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Built(path) => writeln!(f, "Built {}", path.display()),
            Self::List { images } if images.is_empty() => {
                writeln!(f, "There are no guest packages; `guest image build debian` makes one")
            }
            Self::List { images } => {
                writeln!(f, "{:<10} {:>9}  Path", "Guest", "Size")?;
                images.iter().try_for_each(|image| {
                    let size = format!("{} MiB", image.disk_bytes >> 20);
                    writeln!(f, "{:<10} {size:>9}  {}", image.name, image.path.display())
                })
            }
            Self::Removed(name) => writeln!(f, "Removed {name}"),
            Self::Failed(reason) => writeln!(f, "{reason}"),
            Self::Interrupted => writeln!(f, "Interrupted; nothing was left behind"),
        }
    }
}

/// Shows a build's steps on standard error, as a bar where that is a terminal and as lines where it is not.
struct Bar {
    bar: ProgressBar,
    canceled: Box<dyn Fn() -> bool>,
}

impl Progress for Bar {
    fn step(&mut self, number: usize, total: usize, what: &str, seconds: u32) {
        let text = format!("[{number}/{total}] {what} (about {seconds} s)");
        if self.bar.is_hidden() {
            eprintln!("{text}");
        } else {
            self.bar.set_prefix(text);
            self.bar.set_message("");
        }
    }

    fn detail(&mut self, text: &str) {
        self.bar.set_message(text.to_owned());
    }

    fn canceled(&self) -> bool {
        (self.canceled)()
    }
}

/// Builds a package, until a signal asks for an end.
pub(crate) fn build(store: &Store, args: &ImageBuildArgs) -> anyhow::Result<ImageOutcome> {
    if args.guest_type == GuestType::Termina {
        bail!(
            "the termina package is not built here: it is a directory {}/data with guest.cfg and what it names",
            store.path(args.guest_type.name())?.display()
        );
    }
    if let Some(refused) = args.force.then(|| in_use(args.guest_type)).flatten() {
        return Ok(refused);
    }
    if args.guest_type == GuestType::Zircon {
        return Ok(outcome(images::build_zircon(store, args.force)));
    }
    install_missing_tools(args.yes)?;
    let style = ProgressStyle::with_template("{spinner} {prefix} {elapsed} {wide_msg:.dim}")
        .context("The progress bar's template")?;
    let bar = ProgressBar::new_spinner().with_style(style);
    bar.enable_steady_tick(Duration::from_millis(100));
    // Not before: a question to a person, and the tool that installs others, end with the signal as everything does.
    let canceled = Interrupts::take().context("Taking over signals")?.flag();
    let mut progress = Bar { bar: bar.clone(), canceled };
    let options = BuildOptions {
        root_bytes: args.root_size,
        extra_packages: args.package.clone(),
        replace: args.force,
    };
    let result = images::build(store, &options, &mut progress);
    bar.finish_and_clear();
    Ok(outcome(result))
}

fn outcome(result: Result<PathBuf, images::Error>) -> ImageOutcome {
    match result {
        Ok(path) => ImageOutcome::Built(path),
        Err(images::Error::Canceled) => ImageOutcome::Interrupted,
        Err(e) => ImageOutcome::Failed(e.to_string()),
    }
}

/// Builds what a launch needs and the user does not have yet. What it comes to is only worth telling if it is not a package.
pub(crate) fn ensure(
    store: &Store,
    guest_type: GuestType,
    yes: bool,
) -> anyhow::Result<Option<ImageOutcome>> {
    if store.contains(guest_type.name())? {
        return Ok(None);
    }
    if guest_type == GuestType::Debian {
        eprintln!(
            "There is no debian package yet. Building it takes about a minute, 100 MB of downloads and 400 MB of \
             disk, once."
        );
    }
    let args = ImageBuildArgs {
        guest_type,
        package: Vec::new(),
        root_size: BuildOptions::default().root_bytes,
        force: false,
        yes,
    };
    let outcome = build(store, &args)?;
    Ok((outcome.exit_code() != 0).then_some(outcome))
}

/// A package whose disks somebody uses is neither removed nor replaced: what its guest writes from then on would be lost.
fn in_use(guest_type: GuestType) -> Option<ImageOutcome> {
    let disks = platform::locked_disks(guest_type);
    (!disks.is_empty()).then(|| {
        ImageOutcome::Failed(format!("{}; `guest stop {guest_type}` first", disks.join("\n")))
    })
}

fn install_missing_tools(yes: bool) -> anyhow::Result<()> {
    let tools = images::missing();
    if tools.is_empty() {
        return Ok(());
    }
    let command = images::install_command(&tools);
    let names: Vec<_> = tools.iter().map(|tool| tool.program).collect();
    let line = command.join(" ");
    if !yes && !confirm(&format!("Missing: {}. Run `{line}`?", names.join(", ")))? {
        bail!("missing on this machine: {}; install with: {line}", names.join(", "));
    }
    eprintln!("{line}");
    let (program, words) = command.split_first().context("an empty install command")?;
    // Its output is progress, and ours is the result: all of it belongs on standard error.
    let status = Command::new(program)
        .args(words)
        .stdout(io::stderr())
        .status()
        .with_context(|| format!("Cannot run {program}"))?;
    if !status.success() {
        bail!("`{line}` failed ({status}); try it by hand, after `apt-get update`");
    }
    Ok(())
}

/// Asks a person; without one the answer is no.
fn confirm(question: &str) -> anyhow::Result<bool> {
    if !io::stdin().is_terminal() {
        return Ok(false);
    }
    eprint!("{question} [y/N] ");
    io::stderr().flush()?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// Lists the packages.
pub(crate) fn list(store: &Store) -> ImageOutcome {
    match store.list() {
        Ok(packages) => {
            let summary = |package: images::Package| ImageSummary {
                name: package.name,
                path: package.path,
                disk_bytes: package.disk_bytes,
            };
            ImageOutcome::List { images: packages.into_iter().map(summary).collect() }
        }
        Err(e) => ImageOutcome::Failed(e.to_string()),
    }
}

/// Removes a package.
pub(crate) fn remove(store: &Store, guest_type: GuestType) -> ImageOutcome {
    if let Some(refused) = in_use(guest_type) {
        return refused;
    }
    match store.remove(guest_type.name()) {
        Ok(()) => ImageOutcome::Removed(guest_type.to_string()),
        Err(e) => ImageOutcome::Failed(e.to_string()),
    }
}
