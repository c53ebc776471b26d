//! The `guest` command line: what a person or a script says to guest managers. What may enter is how commands are spelt,
//! what they print, and a terminal's ways; guests themselves are the managers' business.
#![forbid(unsafe_code)]

mod args;
mod attach;
mod balloon;
mod completion;
#[cfg(target_os = "linux")]
mod image;
mod launch;
mod list;
mod logs;
mod mem;
mod outcome;
mod platform;
mod running;
mod socat;
mod spelling;
mod stop;
mod terminal;
mod vsock_perf;

use anyhow::Context as _;
use argh::FromArgs as _;
use args::{Args, BalloonCommand, Command, GuestType, ImageArgs, LaunchArgs, MemCommand};
use attach::Port;
use fidl_fuchsia_virtualization::{GuestManagerError, GuestManagerProxy};
use fuchsia_zircon as zx;
use launch::LaunchOutcome;
use outcome::{EXIT_FAILURE, EXIT_USAGE};
use platform::{Interrupts, Platform};
use spelling::Output;
use std::io::{self, Write as _};

/// Runs a command line, without the program's name, and returns the exit code.
pub async fn run(mut words: Vec<String>) -> u8 {
    let output = match spelling::take_output(&mut words) {
        Ok(output) => output,
        Err(e) => {
            eprintln!("guest: {e}");
            return EXIT_USAGE;
        }
    };
    spelling::modernize(&mut words);
    let words: Vec<_> = words.iter().map(String::as_str).collect();
    let args = match Args::from_args(&["guest"], &words) {
        Ok(args) => args,
        Err(early) => {
            // Help that was asked for is output; help for a mistake is not.
            return match early.status {
                Ok(()) => {
                    let _closed = writeln!(io::stdout(), "{}", early.output);
                    0
                }
                Err(()) => {
                    eprintln!("{}\nRun `guest --help` for what there is.", early.output.trim_end());
                    EXIT_USAGE
                }
            };
        }
    };
    match execute(args.command, output).await {
        Ok(code) => code,
        Err(e) => {
            let pipe_closed = e
                .downcast_ref::<io::Error>()
                .is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe);
            if !pipe_closed {
                eprintln!("guest: {e:#}");
            }
            EXIT_FAILURE
        }
    }
}

async fn execute(command: Command, output: Output) -> anyhow::Result<u8> {
    let code = match command {
        Command::Launch(args) => launch(&args, output).await?,
        Command::Attach(args) => {
            let port = if args.serial { Port::Serial } else { Port::Console };
            let interrupts = Interrupts::take().context("Taking over signals")?.stream();
            let attached =
                attach::attach(args.guest_type, &manager(args.guest_type)?, port, interrupts)
                    .await?;
            outcome::print(&attached, output)?
        }
        Command::Stop(args) => {
            let hint = |hint: &str| eprintln!("{hint}");
            let manager = manager(args.guest_type)?;
            let stopped = stop::stop(args.guest_type, &manager, args.force, hint).await?;
            outcome::print(&stopped, output)?
        }
        Command::List(args) => list(args.guest_type, output).await?,
        Command::Balloon(args) => {
            let outcome = match args.command {
                BalloonCommand::Set(args) => {
                    balloon::set(args.guest_type, &manager(args.guest_type)?, args.num_pages).await
                }
                BalloonCommand::Stats(args) => {
                    balloon::stats(args.guest_type, &manager(args.guest_type)?).await
                }
            };
            outcome::print(&outcome, output)?
        }
        Command::Mem(args) => {
            let outcome = match args.command {
                MemCommand::RequestPlugged(args) => {
                    mem::request_plugged(args.guest_type, &manager(args.guest_type)?, args.size)
                        .await
                }
                MemCommand::Stats(args) => {
                    mem::stats(args.guest_type, &manager(args.guest_type)?).await
                }
            };
            outcome::print(&outcome, output)?
        }
        Command::Socat(args) => {
            let interrupts = Interrupts::take().context("Taking over signals")?.stream();
            let outcome = socat::run(&args.command, manager, interrupts).await?;
            outcome::print(&outcome, output)?
        }
        Command::VsockPerf(args) => {
            let interrupts = Interrupts::take().context("Taking over signals")?.stream();
            let manager = manager(args.guest_type)?;
            outcome::print(&vsock_perf::run(&args, &manager, interrupts).await, output)?
        }
        Command::Image(args) => image(&args, output)?,
        Command::Logs(args) => {
            outcome::print(&Platform::look()?.logs(args.guest_type).await?, output)?
        }
        Command::Completion(args) => {
            write!(io::stdout(), "{}", completion::script(args.shell))?;
            0
        }
    };
    Ok(code)
}

/// A guest's manager, brought up if it is not there yet.
fn manager(guest: GuestType) -> anyhow::Result<GuestManagerProxy> {
    Platform::start()?.manager(guest)?.context("the system has no guest managers")
}

async fn launch(args: &LaunchArgs, output: Output) -> anyhow::Result<u8> {
    #[cfg(target_os = "linux")]
    if let Some(outcome) = image::ensure(&platform::store()?, args.guest_type, args.yes)? {
        return Ok(outcome::print(&outcome, output)?);
    }
    let interrupts = Interrupts::take().context("Taking over signals")?;
    let platform = match Platform::start() {
        // The key goes to all that this command has just started as well, and ends it.
        Err(_) if interrupts.flag()() => {
            return Ok(outcome::print(&LaunchOutcome::Interrupted, output)?);
        }
        started => started?,
    };
    let manager = platform.manager(args.guest_type)?.context("the system has no guest managers")?;
    let begin = zx::Time::get_monotonic();
    let outcome = launch::launch(args, &manager, interrupts.stream()).await?;
    if outcome.has_reasons_in_the_log() {
        let reasons = platform.errors_since(args.guest_type, begin).await;
        reasons.iter().for_each(|reason| eprintln!("{reason}"));
    }
    if outcome == LaunchOutcome::LaunchFailure(GuestManagerError::StartFailure.into_primitive()) {
        platform::locked_disks(args.guest_type).iter().for_each(|disk| eprintln!("{disk}"));
    }
    Ok(outcome::print(&outcome, output)?)
}

async fn list(guest: Option<GuestType>, output: Output) -> anyhow::Result<u8> {
    let platform = Platform::look()?;
    let outcome = match guest {
        Some(guest) => list::details(guest, platform.manager(guest)?).await,
        None => {
            let managers = GuestType::ALL.map(|guest| Ok((guest, platform.manager(guest)?)));
            list::summary(managers.into_iter().collect::<anyhow::Result<_>>()?).await
        }
    };
    Ok(outcome::print(&outcome, output)?)
}

#[cfg(target_os = "linux")]
fn image(args: &ImageArgs, output: Output) -> anyhow::Result<u8> {
    use args::ImageCommand;
    let store = platform::store()?;
    let outcome = match &args.command {
        ImageCommand::Build(args) => image::build(&store, args)?,
        ImageCommand::List(_) => image::list(&store),
        ImageCommand::Remove(args) => image::remove(&store, args.guest_type),
    };
    Ok(outcome::print(&outcome, output)?)
}

#[cfg(target_os = "fuchsia")]
fn image(_args: &ImageArgs, _output: Output) -> anyhow::Result<u8> {
    anyhow::bail!("guest packages are part of the product; they are built with it")
}
