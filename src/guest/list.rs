//! `guest list`: every guest in a line, or one in full.

use crate::args::GuestType;
use crate::outcome::{EXIT_NOT_RUNNING, Outcome};
use fidl_fuchsia_virtualization as fvirt;
use fuchsia_async::TimeoutExt as _;
use fuchsia_zircon as zx;
use serde::Serialize;
use std::fmt;

/// A manager that takes longer counts as unreachable.
const TIMEOUT: zx::Duration = zx::Duration::from_seconds(10);

/// A guest in the summary.
#[derive(Debug, Serialize, PartialEq, Eq)]
pub(crate) struct GuestSummary {
    name: String,
    status: String,
    uptime_nanos: Option<i64>,
}

/// A guest in full.
#[derive(Debug, Serialize, PartialEq, Eq)]
pub(crate) struct GuestDetails {
    package_url: String,
    status: String,
    uptime_nanos: i64,
    stop_reason: Option<String>,
    cpu_count: Option<u8>,
    memory_bytes: Option<u64>,
    device_counts: Vec<(String, u32)>,
    problems: Vec<String>,
}

/// What `guest list` says.
#[derive(Debug, Serialize, PartialEq, Eq)]
pub(crate) enum ListOutcome {
    Summary { guests: Vec<GuestSummary> },
    Details(GuestDetails),
}

impl Outcome for ListOutcome {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Details(details) if details.status == UNAVAILABLE => EXIT_NOT_RUNNING,
            _ => 0,
        }
    }
}

const UNAVAILABLE: &str = "Unavailable";

fn status_text(status: Option<fvirt::GuestStatus>) -> &'static str {
    match status {
        Some(fvirt::GuestStatus::NotStarted) => "Not started",
        Some(fvirt::GuestStatus::Starting) => "Starting",
        Some(fvirt::GuestStatus::Running) => "Running",
        Some(fvirt::GuestStatus::Stopping) => "Stopping",
        Some(fvirt::GuestStatus::Stopped) => "Stopped",
        Some(fvirt::GuestStatus::VmmUnexpectedTermination) => "VMM Unexpectedly Terminated",
        None => UNAVAILABLE,
    }
}

/// What a manager says, or nothing where it cannot be asked. Where there is no manager no guest was started.
async fn ask(manager: Option<fvirt::GuestManagerProxy>) -> fvirt::GuestInfo {
    let Some(manager) = manager else {
        let guest_status = Some(fvirt::GuestStatus::NotStarted);
        return fvirt::GuestInfo { guest_status, ..Default::default() };
    };
    let answer = async { manager.get_info().await.ok() };
    answer.on_timeout(zx::Time::after(TIMEOUT), || None).await.unwrap_or_default()
}

/// Every guest, with the manager of each where there is one.
pub(crate) async fn summary(
    managers: Vec<(GuestType, Option<fvirt::GuestManagerProxy>)>,
) -> ListOutcome {
    let asked = managers.into_iter().map(|(guest, manager)| async move {
        let info = ask(manager).await;
        GuestSummary {
            name: guest.to_string(),
            status: status_text(info.guest_status).to_owned(),
            uptime_nanos: info.uptime,
        }
    });
    ListOutcome::Summary { guests: futures::future::join_all(asked).await }
}

/// One guest in full.
pub(crate) async fn details(
    guest: GuestType,
    manager: Option<fvirt::GuestManagerProxy>,
) -> ListOutcome {
    let info = ask(manager).await;
    let stop_reason = (info.guest_status == Some(fvirt::GuestStatus::Stopped)).then(|| {
        info.stop_error.map_or_else(|| "Clean shutdown".to_owned(), |error| format!("{error:?}"))
    });
    let descriptor = info.guest_descriptor.unwrap_or_default();
    ListOutcome::Details(GuestDetails {
        package_url: guest.package_url(),
        status: status_text(info.guest_status).to_owned(),
        uptime_nanos: info.uptime.unwrap_or(0),
        stop_reason,
        cpu_count: descriptor.num_cpus,
        memory_bytes: descriptor.guest_memory,
        device_counts: device_counts(&descriptor),
        problems: info.detected_problems.unwrap_or_default(),
    })
}

fn device_counts(descriptor: &fvirt::GuestDescriptor) -> Vec<(String, u32)> {
    if descriptor.num_cpus.is_none() {
        return Vec::new();
    }
    let one =
        |name: &str, present: Option<bool>| (name.to_owned(), u32::from(present == Some(true)));
    let networks = descriptor.networks.as_ref().map_or(0, Vec::len);
    vec![
        one("balloon", descriptor.balloon),
        one("console", descriptor.console),
        one("gpu", descriptor.gpu),
        one("rng", descriptor.rng),
        one("vsock", descriptor.vsock),
        one("sound", descriptor.sound),
        ("network".to_owned(), u32::try_from(networks).unwrap_or(u32::MAX)),
    ]
}

/// `HH:MM:SS`, or dashes where there is none.
fn uptime_text(nanos: Option<i64>) -> String {
    match nanos {
        None => "--:--:--".to_owned(),
        Some(nanos) => {
            let seconds = nanos.max(0) / 1_000_000_000;
            format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
        }
    }
}

impl fmt::Display for ListOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Summary { guests } => {
                writeln!(f, "{:<10} {:<28} {:>8}", "Guest", "Status", "Uptime")?;
                guests.iter().try_for_each(|guest| {
                    let uptime = uptime_text(guest.uptime_nanos);
                    writeln!(f, "{:<10} {:<28} {:>8}", guest.name, guest.status, uptime)
                })
            }
            Self::Details(details) => details.fmt(f),
        }
    }
}

impl fmt::Display for GuestDetails {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Guest package: {}", self.package_url)?;
        writeln!(f, "Guest status:  {}", self.status)?;
        writeln!(
            f,
            "Guest uptime:  {}",
            uptime_text((self.uptime_nanos > 0).then_some(self.uptime_nanos))
        )?;
        if let Some(reason) = &self.stop_reason {
            writeln!(f, "Stop reason:   {reason}")?;
        }
        if let Some(cpus) = self.cpu_count {
            writeln!(f, "CPU count:     {cpus}")?;
        }
        if let Some(bytes) = self.memory_bytes {
            let gib = bytes as f64 / f64::from(1 << 30);
            writeln!(f, "Guest memory:  {gib:.2} GiB ({bytes} bytes)")?;
        }
        if !self.device_counts.is_empty() {
            let (active, inactive): (Vec<_>, Vec<_>) =
                self.device_counts.iter().partition(|(_, count)| *count > 0);
            devices(f, "Active devices:", &active)?;
            devices(f, "Inactive devices:", &inactive)?;
        }
        if !self.problems.is_empty() {
            writeln!(f, "\nDetected problems:")?;
            for problem in &self.problems {
                writeln!(f, "  * {problem}")?;
            }
        }
        Ok(())
    }
}

fn devices(f: &mut fmt::Formatter<'_>, title: &str, devices: &[&(String, u32)]) -> fmt::Result {
    if devices.is_empty() {
        return Ok(());
    }
    writeln!(f, "\n{title}")?;
    devices.iter().try_for_each(|(name, count)| match count {
        0 | 1 => writeln!(f, "  {name}"),
        count => writeln!(f, "  {name} ({count})"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use fidl::endpoints::create_proxy_and_stream;
    use fuchsia_async as fasync;
    use futures::StreamExt as _;

    fn fake_manager(info: fvirt::GuestInfo) -> fvirt::GuestManagerProxy {
        let (proxy, mut stream) = create_proxy_and_stream::<fvirt::GuestManagerMarker>();
        fasync::Task::local(async move {
            while let Some(Ok(request)) = stream.next().await {
                let responder = request.into_get_info().expect("only GetInfo is expected");
                responder.send(&info).expect("the client waits");
            }
        })
        .detach();
        proxy
    }

    #[fasync::run_singlethreaded(test)]
    async fn the_summary_has_a_line_a_guest_and_names_the_unreachable() {
        let (unreachable, _) = fidl::endpoints::create_proxy::<fvirt::GuestManagerMarker>();
        let running = fvirt::GuestInfo {
            guest_status: Some(fvirt::GuestStatus::Running),
            uptime: Some(3_723_000_000_000),
            ..Default::default()
        };
        let managers = vec![
            (GuestType::Debian, Some(fake_manager(running))),
            (GuestType::Termina, None),
            (GuestType::Zircon, Some(unreachable)),
        ];
        let outcome = summary(managers).await;
        let text = outcome.to_string();
        let lines: Vec<_> = text.lines().collect();
        assert!(lines[1].starts_with("debian") && lines[1].contains("Running"), "{text}");
        assert!(lines[1].ends_with("01:02:03"), "{text}");
        assert!(lines[2].contains("Not started"), "{text}");
        assert!(lines[3].contains("Unavailable") && lines[3].ends_with("--:--:--"), "{text}");
        let json = serde_json::to_value(&outcome).unwrap();
        assert_eq!(json["Summary"]["guests"][0]["uptime_nanos"], 3_723_000_000_000_i64);
        assert!(json["Summary"]["guests"][1]["uptime_nanos"].is_null());
    }

    #[fasync::run_singlethreaded(test)]
    async fn details_tell_why_a_guest_stopped() {
        let stopped = fvirt::GuestInfo {
            guest_status: Some(fvirt::GuestStatus::Stopped),
            uptime: Some(5_000_000_000),
            stop_error: Some(fvirt::GuestError::VcpuRuntimeFailure),
            ..Default::default()
        };
        let outcome = details(GuestType::Debian, Some(fake_manager(stopped))).await;
        assert!(outcome.to_string().contains("Stop reason:   VcpuRuntimeFailure"));
        let json = serde_json::to_value(&outcome).unwrap();
        assert_eq!(json["Details"]["stop_reason"], "VcpuRuntimeFailure");
        assert!(json["Details"]["cpu_count"].is_null());
    }

    #[fasync::run_singlethreaded(test)]
    async fn details_part_active_from_inactive_devices() {
        let running = fvirt::GuestInfo {
            guest_status: Some(fvirt::GuestStatus::Running),
            guest_descriptor: Some(fvirt::GuestDescriptor {
                num_cpus: Some(2),
                guest_memory: Some(1 << 30),
                rng: Some(true),
                ..Default::default()
            }),
            detected_problems: Some(vec!["The host is on fire".to_owned()]),
            ..Default::default()
        };
        let text = details(GuestType::Debian, Some(fake_manager(running))).await.to_string();
        let (active, inactive) = text.split_once("Inactive devices:").unwrap();
        assert!(active.contains("  rng") && inactive.contains("  gpu"), "{text}");
        assert!(text.contains("1.00 GiB (1073741824 bytes)"), "{text}");
        assert!(text.ends_with("  * The host is on fire\n"), "{text}");
    }
}
