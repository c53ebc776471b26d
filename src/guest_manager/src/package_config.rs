//! `guest.cfg`: the JSON document in which a guest package says what it boots and which devices it wants.
//!
//! Parsing is strict, so that a misspelt key is told to its author with line and column instead of being a device that
//! is silently not there. Nothing here touches a file: paths stay paths until [`crate::package`] opens them.

use fidl_fuchsia_virtualization as fvirt;
use notation::{net_forward, size};
use serde::de::{
    Deserialize, Deserializer, Error as _, IgnoredAny, IntoDeserializer as _, MapAccess, SeqAccess,
    Visitor,
};
use std::fmt;
use std::marker::PhantomData;

/// The longest device id that `virtio-blk` can report, in bytes (virtio 1.2 §5.2.6, `VIRTIO_BLK_T_GET_ID`).
const MAX_DEVICE_ID: usize = fvirt::MAX_BLOCK_DEVICE_ID as usize;

/// What `guest.cfg` says, each key as it was given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct PackageConfig {
    /// `linux` or `zircon`: which boot protocol, and the kernel's path in the package.
    pub kernel: Option<(fvirt::KernelType, String)>,
    /// `ramdisk`: a path in the package.
    pub ramdisk: Option<String>,
    /// `dtb-overlay`: a path in the package.
    pub dtb_overlay: Option<String>,
    /// `cmdline`: the kernel's command line.
    pub cmdline: Option<String>,
    /// `cmdline-add`: words to append to it.
    pub cmdline_add: Vec<String>,
    /// `cpus`: the number of virtual CPUs.
    pub cpus: Option<u8>,
    /// `memory`: guest memory in bytes.
    pub memory: Option<u64>,
    /// `block`: the disks, in the order of their PCI slots.
    pub block: Vec<BlockOption>,
    /// `default-net`: whether the guest gets a network device that the host configures.
    pub default_net: Option<bool>,
    /// `net-forward`: ports of the host that are the guest's, as [`net_forward::parse`] reads them.
    pub net_forwards: Vec<fvirt::NetForward>,
    /// `virtio-balloon`.
    pub virtio_balloon: Option<bool>,
    /// `virtio-console`.
    pub virtio_console: Option<bool>,
    /// `virtio-gpu`.
    pub virtio_gpu: Option<bool>,
    /// `virtio-rng`.
    pub virtio_rng: Option<bool>,
    /// `virtio-sound`.
    pub virtio_sound: Option<bool>,
    /// `virtio-sound-input`.
    pub virtio_sound_input: Option<bool>,
    /// `virtio-vsock`.
    pub virtio_vsock: Option<bool>,
    /// `virtio-mem`.
    pub virtio_mem: Option<bool>,
    /// `virtio-mem-block-size`, in bytes.
    pub virtio_mem_block_size: Option<u64>,
    /// `virtio-mem-region-size`, in bytes.
    pub virtio_mem_region_size: Option<u64>,
    /// `virtio-mem-region-alignment`, in bytes.
    pub virtio_mem_region_alignment: Option<u64>,
    /// `virtio-wl`, of packages made before Fuchsia dropped the device.
    pub virtio_wl: Option<bool>,
    /// `virtio-magma`, of packages made before Fuchsia dropped the device.
    pub virtio_magma: Option<bool>,
}

/// How a disk's bytes are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BlockFormat {
    /// A raw image in a file.
    File,
    /// A qcow2 image in a file.
    Qcow,
    /// A block device.
    Block,
}

/// One disk of the `block` key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BlockOption {
    /// A path in the package.
    pub path: String,
    /// Whether and where the guest's writes are kept.
    pub mode: fvirt::BlockMode,
    /// The format of what is at the path.
    pub format: BlockFormat,
}

impl BlockOption {
    /// Reads `path[,rw|ro|volatile][,file|qcow|block]`, the path in any place. A disk is a raw file that the guest
    /// may write unless the options say otherwise.
    ///
    /// # Errors
    /// Says which word does not fit.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let (mut path, mut mode, mut format) = (None, None, None);
        for word in text.split(',') {
            match word {
                "rw" => set(&mut mode, fvirt::BlockMode::ReadWrite, word)?,
                "ro" => set(&mut mode, fvirt::BlockMode::ReadOnly, word)?,
                "volatile" => set(&mut mode, fvirt::BlockMode::VolatileWrite, word)?,
                "file" => set(&mut format, BlockFormat::File, word)?,
                "qcow" => set(&mut format, BlockFormat::Qcow, word)?,
                "block" => set(&mut format, BlockFormat::Block, word)?,
                "" => return Err(format!("empty word in block option {text:?}")),
                _ => set(&mut path, word.to_owned(), word)
                    .map_err(|_| format!("unknown block option {word:?}; known are rw, ro, volatile, file, qcow, block"))?,
            }
        }
        Ok(Self {
            path: path.ok_or_else(|| format!("block option {text:?} names no path"))?,
            mode: mode.unwrap_or(fvirt::BlockMode::ReadWrite),
            format: format.unwrap_or(BlockFormat::File),
        })
    }

    /// The id that the guest sees: the end of the path, at most 20 bytes of whole characters.
    #[must_use]
    pub(crate) fn device_id(&self) -> String {
        let mut start = self.path.len().saturating_sub(MAX_DEVICE_ID);
        while !self.path.is_char_boundary(start) {
            start += 1;
        }
        self.path[start..].to_owned()
    }
}

fn set<T>(slot: &mut Option<T>, value: T, word: &str) -> Result<(), String> {
    if slot.replace(value).is_some() {
        return Err(format!("{word:?} contradicts an earlier option of its kind"));
    }
    Ok(())
}

impl PackageConfig {
    /// Parses the document.
    ///
    /// # Errors
    /// The message ends in the line and column where the document goes wrong.
    pub(crate) fn parse(document: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(document)
    }
}

/// A string that is not empty.
struct Text(String);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text.is_empty() {
            return Err(D::Error::custom("an empty string where a path is needed"));
        }
        Ok(Self(text))
    }
}

/// A size as [`size::parse`] reads it.
struct Size(u64);

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        size::parse(&String::deserialize(deserializer)?).map(Self).map_err(D::Error::custom)
    }
}

/// A forwarded port as [`net_forward::parse`] reads it.
struct Forward(fvirt::NetForward);

impl<'de> Deserialize<'de> for Forward {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        net_forward::parse(&String::deserialize(deserializer)?).map(Self).map_err(D::Error::custom)
    }
}

/// What a string says, or an array of them.
struct OneOrMore<T>(Vec<T>);

/// One string or an array of them.
type Strings = OneOrMore<String>;

impl<'de, T: Deserialize<'de>> Deserialize<'de> for OneOrMore<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneOrMoreVisitor<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for OneOrMoreVisitor<T> {
            type Value = OneOrMore<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or an array of strings")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<OneOrMore<T>, E> {
                Ok(OneOrMore(vec![T::deserialize(text.into_deserializer())?]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut array: A) -> Result<OneOrMore<T>, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = array.next_element()? {
                    items.push(item);
                }
                Ok(OneOrMore(items))
            }
        }
        deserializer.deserialize_any(OneOrMoreVisitor(PhantomData))
    }
}

impl<'de> Deserialize<'de> for PackageConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ConfigVisitor;
        impl<'de> Visitor<'de> for ConfigVisitor {
            type Value = PackageConfig;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with the guest's settings")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<PackageConfig, A::Error> {
                let mut config = PackageConfig::default();
                while let Some(key) = map.next_key::<String>()? {
                    config.set_key(&key, &mut map)?;
                }
                Ok(config)
            }
        }
        deserializer.deserialize_map(ConfigVisitor)
    }
}

impl PackageConfig {
    fn set_key<'de, A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        match key {
            "linux" => self.set_kernel(fvirt::KernelType::Linux, map.next_value::<Text>()?.0)?,
            "zircon" => self.set_kernel(fvirt::KernelType::Zircon, map.next_value::<Text>()?.0)?,
            "ramdisk" => self.ramdisk = Some(map.next_value::<Text>()?.0),
            "dtb-overlay" => self.dtb_overlay = Some(map.next_value::<Text>()?.0),
            "cmdline" => self.cmdline = Some(map.next_value()?),
            "cmdline-add" => self.cmdline_add.extend(map.next_value::<Strings>()?.0),
            "cpus" => self.cpus = Some(map.next_value()?),
            "memory" => self.memory = Some(map.next_value::<Size>()?.0),
            "block" => {
                for text in map.next_value::<Strings>()?.0 {
                    self.block.push(BlockOption::parse(&text).map_err(A::Error::custom)?);
                }
            }
            "default-net" => self.default_net = Some(map.next_value()?),
            "net-forward" => {
                let forwards = map.next_value::<OneOrMore<Forward>>()?.0;
                self.net_forwards.extend(forwards.into_iter().map(|forward| forward.0));
            }
            "virtio-balloon" => self.virtio_balloon = Some(map.next_value()?),
            "virtio-console" => self.virtio_console = Some(map.next_value()?),
            "virtio-gpu" => self.virtio_gpu = Some(map.next_value()?),
            "virtio-rng" => self.virtio_rng = Some(map.next_value()?),
            "virtio-sound" => self.virtio_sound = Some(map.next_value()?),
            "virtio-sound-input" => self.virtio_sound_input = Some(map.next_value()?),
            "virtio-vsock" => self.virtio_vsock = Some(map.next_value()?),
            "virtio-mem" => self.virtio_mem = Some(map.next_value()?),
            "virtio-mem-block-size" => {
                self.virtio_mem_block_size = Some(map.next_value::<Size>()?.0);
            }
            "virtio-mem-region-size" => {
                self.virtio_mem_region_size = Some(map.next_value::<Size>()?.0);
            }
            "virtio-mem-region-alignment" => {
                self.virtio_mem_region_alignment = Some(map.next_value::<Size>()?.0);
            }
            "virtio-wl" => self.virtio_wl = Some(map.next_value()?),
            "virtio-magma" => self.virtio_magma = Some(map.next_value()?),
            _ => {
                map.next_value::<IgnoredAny>()?;
                return Err(A::Error::custom(format!("unknown key {key:?}")));
            }
        }
        Ok(())
    }

    fn set_kernel<E: serde::de::Error>(
        &mut self,
        kind: fvirt::KernelType,
        path: String,
    ) -> Result<(), E> {
        if self.kernel.replace((kind, path)).is_some() {
            return Err(E::custom("a second kernel; one of `linux` and `zircon` is meant"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_object_says_nothing_and_an_empty_document_is_an_error() {
        assert_eq!(PackageConfig::parse("{}").unwrap(), PackageConfig::default());
        assert!(PackageConfig::parse("").is_err());
        assert!(PackageConfig::parse("[]").is_err());
    }

    #[test]
    fn reads_every_key() {
        let config = PackageConfig::parse(
            r#"{
                "zircon": "data/kernel", "ramdisk": "data/ramdisk", "dtb-overlay": "data/dtb",
                "cmdline": "a", "cmdline-add": ["b", "c"], "cpus": 4, "memory": "2G",
                "block": "data/disk,ro,qcow", "default-net": true,
                "net-forward": ["tcp:127.0.0.1:8080:80", "udp:[::1]:53:5353"], "virtio-balloon": true, "virtio-console": false, "virtio-gpu": true, "virtio-rng": true,
                "virtio-sound": true, "virtio-sound-input": true, "virtio-vsock": true, "virtio-mem": true,
                "virtio-mem-block-size": "4M", "virtio-mem-region-size": "16G",
                "virtio-mem-region-alignment": "128M", "virtio-wl": true, "virtio-magma": false
            }"#,
        )
        .unwrap();
        assert_eq!(config.kernel, Some((fvirt::KernelType::Zircon, "data/kernel".to_owned())));
        assert_eq!(config.cmdline_add, ["b", "c"]);
        assert_eq!((config.cpus, config.memory), (Some(4), Some(2 << 30)));
        let forwards: Vec<_> = config.net_forwards.iter().map(net_forward::format).collect();
        assert_eq!(forwards, ["tcp:127.0.0.1:8080:80", "udp:[::1]:53:5353"]);
        assert_eq!(config.virtio_console, Some(false));
        assert_eq!(config.virtio_mem_region_size, Some(16 << 30));
        assert_eq!((config.virtio_wl, config.virtio_magma), (Some(true), Some(false)));
        assert_eq!(
            config.block,
            [BlockOption {
                path: "data/disk".to_owned(),
                mode: fvirt::BlockMode::ReadOnly,
                format: BlockFormat::Qcow
            }]
        );
    }

    #[test]
    fn mistakes_are_told_with_their_place() {
        for (document, message, line) in [
            ("{\n \"cpu\": 4}", "unknown key \"cpu\"", 2),
            ("{\"cpus\": 256}", "256", 1),
            ("{\"cpus\": -1}", "-1", 1),
            ("{\n\n\"memory\": \"4T\"}", "\"4T\" is not a size", 3),
            ("{\"memory\": 4096}", "expected a string", 1),
            ("{\"memory\": \"\"}", "is not a size", 1),
            ("{\"memory\": \"99999999999G\"}", "is not a size", 1),
            ("{\"linux\": \"\"}", "empty string", 1),
            ("{\"linux\": \"a\",\n\"zircon\": \"b\"}", "a second kernel", 2),
            ("{\"block\": [\"a,ro\", \"b,rx\"]}", "unknown block option \"rx\"", 1),
            ("{\"block\": \"ro\"}", "names no path", 1),
            ("{\"block\": \"a,ro,rw\"}", "contradicts", 1),
            ("{\n\"net-forward\": [\"1:1\",\n\"8080\"]\n}", "\"8080\" is not a forward", 3),
            ("{\"net-forward\": \"tcp:0:80\"}", "\"0\" in \"tcp:0:80\" is not a port", 1),
            ("{\"virtio-rng\": \"yes\"}", "expected a boolean", 1),
        ] {
            let error = PackageConfig::parse(document).unwrap_err();
            assert!(error.to_string().contains(message), "{document}: {error}");
            assert_eq!(error.line(), line, "{document}: {error}");
        }
    }

    #[test]
    fn a_device_id_is_the_end_of_the_path_in_whole_characters() {
        let id = |path: &str| BlockOption::parse(path).unwrap().device_id();
        assert_eq!(id("data/rootfs.img"), "data/rootfs.img");
        assert_eq!(id("a/0123456789012345678"), "/0123456789012345678");
        // 21 bytes, the first character of two bytes: it cannot be halved.
        assert_eq!(id("ä0123456789012345678"), "0123456789012345678");
    }
}
