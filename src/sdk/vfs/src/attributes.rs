//! Attributes of nodes.

use fidl_fuchsia_io as fio;

/// Attributes that say what a node is and how large, in bytes; nothing about times and owners.
pub fn basic(
    protocols: fio::NodeProtocolKinds,
    abilities: fio::Operations,
    size: u64,
) -> fio::NodeAttributes2 {
    fio::NodeAttributes2 {
        mutable_attributes: fio::MutableNodeAttributes::default(),
        immutable_attributes: fio::ImmutableNodeAttributes {
            protocols: Some(protocols),
            abilities: Some(abilities),
            content_size: Some(size),
            storage_size: Some(size),
            link_count: Some(1),
            ..Default::default()
        },
    }
}

/// Leaves only what was asked for.
pub(crate) fn select(
    all: fio::NodeAttributes2,
    query: fio::NodeAttributesQuery,
) -> fio::NodeAttributes2 {
    use fio::NodeAttributesQuery as Query;
    fn keep<T>(query: Query, bit: Query, value: Option<T>) -> Option<T> {
        value.filter(|_| query.contains(bit))
    }
    let (mutable, immutable) = (all.mutable_attributes, all.immutable_attributes);
    fio::NodeAttributes2 {
        mutable_attributes: fio::MutableNodeAttributes {
            creation_time: keep(query, Query::CREATION_TIME, mutable.creation_time),
            modification_time: keep(query, Query::MODIFICATION_TIME, mutable.modification_time),
            mode: keep(query, Query::MODE, mutable.mode),
            uid: keep(query, Query::UID, mutable.uid),
            gid: keep(query, Query::GID, mutable.gid),
            rdev: keep(query, Query::RDEV, mutable.rdev),
            access_time: keep(query, Query::ACCESS_TIME, mutable.access_time),
            casefold: keep(query, Query::CASEFOLD, mutable.casefold),
            ..Default::default()
        },
        immutable_attributes: fio::ImmutableNodeAttributes {
            protocols: keep(query, Query::PROTOCOLS, immutable.protocols),
            abilities: keep(query, Query::ABILITIES, immutable.abilities),
            content_size: keep(query, Query::CONTENT_SIZE, immutable.content_size),
            storage_size: keep(query, Query::STORAGE_SIZE, immutable.storage_size),
            link_count: keep(query, Query::LINK_COUNT, immutable.link_count),
            id: keep(query, Query::ID, immutable.id),
            change_time: keep(query, Query::CHANGE_TIME, immutable.change_time),
            ..Default::default()
        },
    }
}

const POSIX_DIRECTORY: u32 = 0o040_000;
const POSIX_FILE: u32 = 0o100_000;
const POSIX_READ: u32 = 0o400;
const POSIX_WRITE: u32 = 0o200;
const POSIX_EXECUTE: u32 = 0o100;

/// The older form. A mode that the node does not have follows from what it is and can do.
pub(crate) fn deprecated(attributes: &fio::NodeAttributes2) -> fio::NodeAttributes {
    let (mutable, immutable) = (&attributes.mutable_attributes, &attributes.immutable_attributes);
    fio::NodeAttributes {
        mode: mutable.mode.unwrap_or_else(|| posix_mode(immutable)),
        id: immutable.id.unwrap_or(fio::INO_UNKNOWN),
        content_size: immutable.content_size.unwrap_or(0),
        storage_size: immutable.storage_size.unwrap_or(0),
        link_count: immutable.link_count.unwrap_or(1),
        creation_time: mutable.creation_time.unwrap_or(0),
        modification_time: mutable.modification_time.unwrap_or(0),
    }
}

fn posix_mode(immutable: &fio::ImmutableNodeAttributes) -> u32 {
    let protocols = immutable.protocols.unwrap_or(fio::NodeProtocolKinds::empty());
    let abilities = immutable.abilities.unwrap_or(fio::Operations::empty());
    let kind = if protocols.contains(fio::NodeProtocolKinds::DIRECTORY) {
        POSIX_DIRECTORY
    } else if protocols.contains(fio::NodeProtocolKinds::FILE) {
        POSIX_FILE
    } else {
        0
    };
    let permissions = [
        (fio::Operations::READ_BYTES, POSIX_READ),
        (fio::Operations::WRITE_BYTES, POSIX_WRITE),
        (fio::Operations::EXECUTE, POSIX_EXECUTE),
    ];
    permissions
        .into_iter()
        .filter(|(ability, _)| abilities.contains(*ability))
        .fold(kind, |mode, (_, bit)| mode | bit)
}
