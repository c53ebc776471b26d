//! What `guest` understands, by argh, in the spelling of today's Fuchsia. [`crate::spelling`] brings older ones here.

use argh::FromArgs;
use fidl_fuchsia_virtualization as fvirt;
use std::fmt;
use std::str::FromStr;

/// The kinds of guest that there is a manager for.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub(crate) enum GuestType {
    /// Debian with its own kernel.
    Debian,
    /// ChromiumOS' container host.
    Termina,
    /// A Zircon system.
    Zircon,
}

impl GuestType {
    /// Every guest type, in the order of `guest list`.
    pub(crate) const ALL: [GuestType; 3] = [Self::Debian, Self::Termina, Self::Zircon];

    /// The name on the command line.
    #[must_use]
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Debian => "debian",
            Self::Termina => "termina",
            Self::Zircon => "zircon",
        }
    }

    /// The URL of its package.
    #[must_use]
    pub(crate) fn package_url(self) -> String {
        format!("fuchsia-pkg://fuchsia.com/{0}_guest#meta/{0}_guest.cm", self.name())
    }
}

impl fmt::Display for GuestType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for GuestType {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|guest| guest.name() == text).ok_or_else(|| {
            let names: Vec<_> = Self::ALL.iter().map(|guest| guest.name()).collect();
            format!("unknown guest type {text:?}; there are {}", names.join(", "))
        })
    }
}

/// Run virtual machines: a Debian shell in one command.
#[derive(FromArgs, Debug, PartialEq)]
#[argh(
    example = "Start Debian and get a shell in it (Ctrl-] detaches, the guest goes on):\n\
                 $ {command_name} launch debian\n\
               See what runs, for a script:\n\
                 $ {command_name} list --machine json\n\
               Stop it:\n\
                 $ {command_name} stop debian",
    note = "Every command takes `--machine json` and then prints one JSON value instead of text.",
    error_code(1, "The command failed; standard error says why."),
    error_code(2, "The command line was not understood."),
    error_code(3, "The guest is not running, or lacks the device that the command needs.")
)]
pub(crate) struct Args {
    #[argh(subcommand)]
    pub(crate) command: Command,
}

#[derive(FromArgs, Debug, PartialEq)]
#[argh(subcommand)]
pub(crate) enum Command {
    Launch(LaunchArgs),
    Attach(AttachArgs),
    Stop(StopArgs),
    List(ListArgs),
    Balloon(BalloonArgs),
    Mem(MemArgs),
    Socat(SocatArgs),
    VsockPerf(VsockPerfArgs),
    Image(ImageArgs),
    Logs(LogsArgs),
    Completion(CompletionArgs),
}

/// Start a guest, and attach to its console unless told otherwise.
#[derive(FromArgs, Debug, PartialEq)]
#[argh(
    subcommand,
    name = "launch",
    example = "Debian with two CPUs and a GiB of memory:\n\
                 $ {command_name} debian --cpus 2 --memory 1G\n\
               With its web server on this machine's port 8080:\n\
                 $ {command_name} debian --forward 8080:80\n\
               In the background:\n\
                 $ {command_name} debian --detach",
    note = "The first launch of debian builds its package, which takes about a minute. Press Ctrl-] to detach."
)]
pub(crate) struct LaunchArgs {
    /// the guest: debian, termina or zircon
    #[argh(positional)]
    pub(crate) guest_type: GuestType,
    /// words to add to the kernel's command line; may be repeated
    #[argh(option)]
    pub(crate) cmdline_add: Vec<String>,
    /// whether there is a network device with the default settings
    #[argh(option)]
    pub(crate) default_net: Option<bool>,
    /// a port of this machine that is the guest's, as PORT:GUEST_PORT, if need be with tcp: or udp: and an address to listen on in front; may be repeated
    #[argh(option, from_str_fn(forward))]
    pub(crate) forward: Vec<fvirt::NetForward>,
    /// memory in bytes, or in another unit: 512M, 2G
    #[argh(option, from_str_fn(size))]
    pub(crate) memory: Option<u64>,
    /// number of virtual CPUs
    #[argh(option)]
    pub(crate) cpus: Option<u8>,
    /// whether there is a memory balloon
    #[argh(option)]
    pub(crate) virtio_balloon: Option<bool>,
    /// whether there is a console
    #[argh(option)]
    pub(crate) virtio_console: Option<bool>,
    /// whether there is a display
    #[argh(option)]
    pub(crate) virtio_gpu: Option<bool>,
    /// whether there is a source of random numbers
    #[argh(option)]
    pub(crate) virtio_rng: Option<bool>,
    /// whether there is sound output
    #[argh(option)]
    pub(crate) virtio_sound: Option<bool>,
    /// whether there is sound input
    #[argh(option)]
    pub(crate) virtio_sound_input: Option<bool>,
    /// whether there are sockets to the host
    #[argh(option)]
    pub(crate) virtio_vsock: Option<bool>,
    /// whether there is memory that can be plugged in
    #[argh(option)]
    pub(crate) virtio_mem: Option<bool>,
    /// how much memory can be plugged in, written as that of --memory
    #[argh(option, from_str_fn(size))]
    pub(crate) virtio_mem_region_size: Option<u64>,
    /// alignment of the memory that can be plugged in, written as that of --memory
    #[argh(option, from_str_fn(size))]
    pub(crate) virtio_mem_region_alignment: Option<u64>,
    /// granularity of plugging memory in, written as that of --memory
    #[argh(option, from_str_fn(size))]
    pub(crate) virtio_mem_block_size: Option<u64>,
    /// leave the guest to itself once it has started
    #[argh(switch, short = 'd')]
    pub(crate) detach: bool,
    /// answer yes to every question, such as whether to install tools that building the guest's package needs
    #[argh(switch, short = 'y')]
    pub(crate) yes: bool,
}

fn forward(text: &str) -> Result<fvirt::NetForward, String> {
    notation::net_forward::parse(text)
}

fn size(text: &str) -> Result<u64, String> {
    notation::size::parse(text)
}

impl LaunchArgs {
    /// The overrides that were given; everything else stays the package's.
    pub(crate) fn config(&self) -> fvirt::GuestConfig {
        fvirt::GuestConfig {
            cmdline_add: (!self.cmdline_add.is_empty()).then(|| self.cmdline_add.clone()),
            cpus: self.cpus,
            guest_memory: self.memory,
            default_net: self.default_net,
            net_forwards: (!self.forward.is_empty()).then(|| self.forward.clone()),
            virtio_balloon: self.virtio_balloon,
            virtio_console: self.virtio_console,
            virtio_gpu: self.virtio_gpu,
            virtio_rng: self.virtio_rng,
            virtio_sound: self.virtio_sound,
            virtio_sound_input: self.virtio_sound_input,
            virtio_vsock: self.virtio_vsock,
            virtio_mem: self.virtio_mem,
            virtio_mem_block_size: self.virtio_mem_block_size,
            virtio_mem_region_size: self.virtio_mem_region_size,
            virtio_mem_region_alignment: self.virtio_mem_region_alignment,
            ..Default::default()
        }
    }
}

/// Connect this terminal to a running guest's console.
#[derive(FromArgs, Debug, PartialEq)]
#[argh(
    subcommand,
    name = "attach",
    example = "$ {command_name} debian",
    note = "Press Ctrl-] to detach; the guest goes on. Standard input and output may be pipes."
)]
pub(crate) struct AttachArgs {
    /// the guest: debian, termina or zircon
    #[argh(positional)]
    pub(crate) guest_type: GuestType,
    /// use the serial port both ways instead of the console
    #[argh(switch)]
    pub(crate) serial: bool,
}

/// Stop a guest.
#[derive(FromArgs, Debug, PartialEq)]
#[argh(
    subcommand,
    name = "stop",
    example = "$ {command_name} debian",
    note = "Asks the guest to shut itself down, as a person at its console would; --force does not ask."
)]
pub(crate) struct StopArgs {
    /// the guest: debian, termina or zircon
    #[argh(positional)]
    pub(crate) guest_type: GuestType,
    /// stop it at once, as if its power were cut
    #[argh(switch, short = 'f')]
    pub(crate) force: bool,
}

/// Show every guest, or one in detail.
#[derive(FromArgs, Debug, PartialEq)]
#[argh(subcommand, name = "list", example = "$ {command_name}\n$ {command_name} debian")]
pub(crate) struct ListArgs {
    /// the guest: debian, termina or zircon
    #[argh(positional)]
    pub(crate) guest_type: Option<GuestType>,
}

/// Look at or change how much memory a guest lends to the host.
#[derive(FromArgs, Debug, PartialEq)]
#[argh(
    subcommand,
    name = "balloon",
    example = "Borrow 256 MiB:\n  $ {command_name} set debian 65536\n$ {command_name} stats debian"
)]
pub(crate) struct BalloonArgs {
    #[argh(subcommand)]
    pub(crate) command: BalloonCommand,
}

#[derive(FromArgs, Debug, PartialEq)]
#[argh(subcommand)]
pub(crate) enum BalloonCommand {
    Set(BalloonSetArgs),
    Stats(BalloonStatsArgs),
}

/// Set the balloon's size in pages of 4 KiB.
#[derive(FromArgs, Debug, PartialEq)]
#[argh(
    subcommand,
    name = "set",
    example = "Borrow 256 MiB:\n  $ {command_name} debian 65536\nGive everything back:\n  $ {command_name} debian 0"
)]
pub(crate) struct BalloonSetArgs {
    /// the guest: debian, termina or zircon
    #[argh(positional)]
    pub(crate) guest_type: GuestType,
    /// the balloon's size in pages of 4 KiB
    #[argh(positional)]
    pub(crate) num_pages: u32,
}

/// Show the balloon's size and what the guest says of its memory.
#[derive(FromArgs, Debug, PartialEq)]
#[argh(subcommand, name = "stats", example = "$ {command_name} debian")]
pub(crate) struct BalloonStatsArgs {
    /// the guest: debian, termina or zircon
    #[argh(positional)]
    pub(crate) guest_type: GuestType,
}

/// Look at or change how much memory is plugged into a guest.
#[derive(FromArgs, Debug, PartialEq)]
#[argh(subcommand, name = "mem", example = "$ {command_name} stats debian")]
pub(crate) struct MemArgs {
    #[argh(subcommand)]
    pub(crate) command: MemCommand,
}

#[derive(FromArgs, Debug, PartialEq)]
#[argh(subcommand)]
pub(crate) enum MemCommand {
    RequestPlugged(MemRequestPluggedArgs),
    Stats(MemStatsArgs),
}

/// Ask the guest to have so much memory plugged in.
#[derive(FromArgs, Debug, PartialEq)]
#[argh(subcommand, name = "request-plugged", example = "$ {command_name} debian 1G")]
pub(crate) struct MemRequestPluggedArgs {
    /// the guest: debian, termina or zircon
    #[argh(positional)]
    pub(crate) guest_type: GuestType,
    /// in bytes, or in another unit: 512M, 2G
    #[argh(positional, from_str_fn(size))]
    pub(crate) size: u64,
}

/// Show how much memory is plugged in and could be.
#[derive(FromArgs, Debug, PartialEq)]
#[argh(subcommand, name = "stats", example = "$ {command_name} debian")]
pub(crate) struct MemStatsArgs {
    /// the guest: debian, termina or zircon
    #[argh(positional)]
    pub(crate) guest_type: GuestType,
}

/// Connect standard input and output to a guest's vsock port.
#[derive(FromArgs, Debug, PartialEq)]
#[argh(
    subcommand,
    name = "socat",
    example = "Talk to what listens on port 23 of the guest:\n  $ {command_name} connect debian 23\n\
               Wait for the guest to connect to port 4000 of the host:\n  $ {command_name} listen debian 4000"
)]
pub(crate) struct SocatArgs {
    #[argh(subcommand)]
    pub(crate) command: SocatCommand,
}

#[derive(FromArgs, Debug, PartialEq)]
#[argh(subcommand)]
pub(crate) enum SocatCommand {
    Connect(SocatConnectArgs),
    Listen(SocatListenArgs),
}

/// Connect to a port on which the guest listens.
#[derive(FromArgs, Debug, PartialEq)]
#[argh(subcommand, name = "connect", example = "$ {command_name} debian 23")]
pub(crate) struct SocatConnectArgs {
    /// the guest: debian or termina
    #[argh(positional)]
    pub(crate) guest_type: GuestType,
    /// the guest's port
    #[argh(positional)]
    pub(crate) guest_port: u32,
}

/// Wait for the guest to connect to a port, once.
#[derive(FromArgs, Debug, PartialEq)]
#[argh(subcommand, name = "listen", example = "$ {command_name} debian 4000")]
pub(crate) struct SocatListenArgs {
    /// the guest: debian or termina
    #[argh(positional)]
    pub(crate) guest_type: GuestType,
    /// the host's port
    #[argh(positional)]
    pub(crate) host_port: u32,
}

/// Measure how fast data moves between host and guest over vsock.
#[derive(FromArgs, Debug, PartialEq)]
#[argh(
    subcommand,
    name = "vsock-perf",
    example = "Everything, which takes some minutes:\n  $ {command_name} debian\n\
               A quick look:\n  $ {command_name} debian --repeats 5 --transfer-size 16",
    note = "Types a command on the guest's console, so a shell has to wait there, and the guest needs the program \
            /test_utils/virtio_vsock_test_util (tests/guests/virtio_vsock_test_util.c)."
)]
pub(crate) struct VsockPerfArgs {
    /// the guest: debian
    #[argh(positional)]
    pub(crate) guest_type: GuestType,
    /// how often each transfer is measured, 100 times unless given
    #[argh(option, default = "100")]
    pub(crate) repeats: u32,
    /// size of a transfer in MiB, 128 unless given
    #[argh(option, default = "128")]
    pub(crate) transfer_size: u16,
}

/// Build, list and remove guest packages.
#[derive(FromArgs, Debug, PartialEq)]
#[argh(
    subcommand,
    name = "image",
    example = "$ {command_name} build debian\n$ {command_name} list\n$ {command_name} remove debian"
)]
pub(crate) struct ImageArgs {
    #[argh(subcommand)]
    pub(crate) command: ImageCommand,
}

#[derive(FromArgs, Debug, PartialEq)]
#[argh(subcommand)]
pub(crate) enum ImageCommand {
    Build(ImageBuildArgs),
    List(ImageListArgs),
    Remove(ImageRemoveArgs),
}

/// Build a guest's package from Debian's archive: about a minute, 400 MB on the disk.
#[derive(FromArgs, Debug, PartialEq)]
#[argh(
    subcommand,
    name = "build",
    example = "Debian with Python and room for 16 GiB:\n\
                 $ {command_name} debian --package python3 --root-size 16G"
)]
pub(crate) struct ImageBuildArgs {
    /// the guest: debian
    #[argh(positional)]
    pub(crate) guest_type: GuestType,
    /// a Debian package to add to the guest; may be repeated
    #[argh(option)]
    pub(crate) package: Vec<String>,
    /// size of the root file system, 4G unless given; only what is used counts
    #[argh(option, from_str_fn(size), default = "4 << 30")]
    pub(crate) root_size: u64,
    /// replace the package that there is, and discard what its guest has written
    #[argh(switch)]
    pub(crate) force: bool,
    /// answer yes to every question, such as whether to install the tools that the build needs
    #[argh(switch, short = 'y')]
    pub(crate) yes: bool,
}

/// Show the packages that there are.
#[derive(FromArgs, Debug, PartialEq)]
#[argh(subcommand, name = "list", example = "$ {command_name}")]
pub(crate) struct ImageListArgs {}

/// Remove a guest's package and what its guest has written.
#[derive(FromArgs, Debug, PartialEq)]
#[argh(subcommand, name = "remove", example = "$ {command_name} debian")]
pub(crate) struct ImageRemoveArgs {
    /// the guest: debian, termina or zircon
    #[argh(positional)]
    pub(crate) guest_type: GuestType,
}

/// Show what a guest's components have logged.
#[derive(FromArgs, Debug, PartialEq)]
#[argh(subcommand, name = "logs", example = "$ {command_name} debian")]
pub(crate) struct LogsArgs {
    /// the guest: debian, termina or zircon; all of them if not given
    #[argh(positional)]
    pub(crate) guest_type: Option<GuestType>,
}

/// Print a script that teaches a shell to complete this command line.
#[derive(FromArgs, Debug, PartialEq)]
#[argh(subcommand, name = "completion", example = "$ source <({command_name} bash)")]
pub(crate) struct CompletionArgs {
    /// the shell: bash, zsh or fish
    #[argh(positional)]
    pub(crate) shell: Shell,
}

/// A shell that a completion script can be had for.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub(crate) enum Shell {
    Bash,
    Zsh,
    Fish,
}

impl FromStr for Shell {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "bash" => Ok(Self::Bash),
            "zsh" => Ok(Self::Zsh),
            "fish" => Ok(Self::Fish),
            _ => Err(format!("unknown shell {text:?}; there are bash, zsh and fish")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use argh::{EarlyExit, SubCommands as _};

    fn help(words: &[&str]) -> EarlyExit {
        let words: Vec<_> = words.iter().copied().chain(["--help"]).collect();
        Args::from_args(&["guest"], &words).unwrap_err()
    }

    #[test]
    fn every_command_has_an_example() {
        let nested: &[(&str, &[&argh::CommandInfo])] = &[
            ("balloon", BalloonCommand::COMMANDS),
            ("mem", MemCommand::COMMANDS),
            ("socat", SocatCommand::COMMANDS),
            ("image", ImageCommand::COMMANDS),
        ];
        for command in Command::COMMANDS {
            let below = nested
                .iter()
                .find(|(name, _)| *name == command.name)
                .map_or(&[][..], |(_, below)| below);
            let words = std::iter::once(vec![command.name]);
            for words in words.chain(below.iter().map(|below| vec![command.name, below.name])) {
                let help = help(&words);
                assert!(
                    help.status.is_ok() && help.output.contains("Examples:"),
                    "{words:?}: {}",
                    help.output
                );
            }
        }
    }
}
