//! The CMOS real-time clock (Motorola MC146818 datasheet) at ports 0x70 and 0x71: time of day in UTC, no alarms.

use crate::bus::BusDevice;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

/// Ports the clock occupies.
pub const SIZE: u64 = 2;
/// CMOS register that holds the century, as the FADT announces.
pub const CENTURY_REGISTER: u8 = 0x32;

const PORT_INDEX: u64 = 0;
const PORT_DATA: u64 = 1;

const REG_SECONDS: u8 = 0x00;
const REG_MINUTES: u8 = 0x02;
const REG_HOURS: u8 = 0x04;
const REG_WEEKDAY: u8 = 0x06;
const REG_DAY: u8 = 0x07;
const REG_MONTH: u8 = 0x08;
const REG_YEAR: u8 = 0x09;
const REG_A: u8 = 0x0a;
const REG_B: u8 = 0x0b;
const REG_C: u8 = 0x0c;
const REG_D: u8 = 0x0d;

/// Register B: 24-hour mode.
const B_24_HOUR: u8 = 1 << 1;
/// Register B: binary instead of BCD.
const B_BINARY: u8 = 1 << 2;
/// Register B: updates are halted while the time is being set.
const B_SET: u8 = 1 << 7;
/// The interrupt enables are not implemented and stay 0.
const B_WRITABLE: u8 = B_SET | B_BINARY | 1;
/// Register D: RAM and time are valid.
const D_VALID: u8 = 1 << 7;
/// Register A after firmware: 32.768 kHz time base, no update in progress.
const A_DEFAULT: u8 = 0x26;

const SECONDS_A_DAY: i64 = 86_400;

/// A date and time of the proleptic Gregorian calendar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Civil {
    year: i64,
    month: i64,
    day: i64,
    hour: i64,
    minute: i64,
    second: i64,
}

impl Civil {
    /// From seconds since 1970. Years start in March internally, so that the leap day is the last of a year.
    fn from_unix(seconds: i64) -> Self {
        let days = seconds.div_euclid(SECONDS_A_DAY);
        let of_day = seconds.rem_euclid(SECONDS_A_DAY);
        let shifted = days + 719_468;
        let era = shifted.div_euclid(146_097);
        let day_of_era = shifted.rem_euclid(146_097);
        let year_of_era =
            (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_index = (5 * day_of_year + 2) / 153;
        let month = if month_index < 10 { month_index + 3 } else { month_index - 9 };
        Self {
            year: year_of_era + era * 400 + i64::from(month <= 2),
            month,
            day: day_of_year - (153 * month_index + 2) / 5 + 1,
            hour: of_day / 3600,
            minute: of_day / 60 % 60,
            second: of_day % 60,
        }
    }

    fn to_unix(self) -> i64 {
        let year = self.year - i64::from(self.month <= 2);
        let era = year.div_euclid(400);
        let year_of_era = year.rem_euclid(400);
        let month_index = (self.month + 9).rem_euclid(12);
        let day_of_year = (153 * month_index + 2) / 5 + self.day - 1;
        let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
        let days = era * 146_097 + day_of_era - 719_468;
        days * SECONDS_A_DAY + self.hour * 3600 + self.minute * 60 + self.second
    }

    /// 1 is Sunday.
    fn weekday(self) -> i64 {
        (self.to_unix().div_euclid(SECONDS_A_DAY) + 4).rem_euclid(7) + 1
    }
}

struct State {
    index: u8,
    register_b: u8,
    /// Guest time minus host time, in seconds.
    offset: i64,
    /// Time registers while the guest sets them.
    setting: Option<Civil>,
    /// Registers 0x0e and up, and the alarm registers: plain storage (reset vector hints and the like).
    storage: [u8; 128],
}

/// The clock.
pub struct CmosRtc {
    state: Mutex<State>,
    now: fn() -> i64,
}

fn system_time() -> i64 {
    match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_secs()).unwrap_or(i64::MAX / 2),
        Err(_) => 0,
    }
}

impl Default for CmosRtc {
    fn default() -> Self {
        Self::with_clock(system_time)
    }
}

impl CmosRtc {
    /// A clock that follows `now`, in seconds since 1970.
    fn with_clock(now: fn() -> i64) -> Self {
        let state =
            State { index: 0, register_b: B_24_HOUR, offset: 0, setting: None, storage: [0; 128] };
        Self { state: Mutex::new(state), now }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read_register(&self, state: &State) -> u8 {
        let time = state
            .setting
            .unwrap_or_else(|| Civil::from_unix((self.now)().saturating_add(state.offset)));
        let value = match state.index {
            REG_SECONDS => time.second,
            REG_MINUTES => time.minute,
            REG_HOURS => time.hour,
            REG_WEEKDAY => time.weekday(),
            REG_DAY => time.day,
            REG_MONTH => time.month,
            REG_YEAR => time.year.rem_euclid(100),
            CENTURY_REGISTER => time.year.div_euclid(100),
            REG_A => return A_DEFAULT,
            REG_B => return state.register_b,
            REG_C => return 0,
            REG_D => return D_VALID,
            index => return state.storage[usize::from(index & 0x7f)],
        };
        encode(value as u8, state.register_b)
    }

    fn write_register(&self, state: &mut State, value: u8) {
        match state.index {
            REG_A | REG_C | REG_D => {}
            REG_B => {
                state.register_b = (value & B_WRITABLE) | B_24_HOUR;
                let now = (self.now)();
                if value & B_SET != 0 {
                    let offset = state.offset;
                    state
                        .setting
                        .get_or_insert_with(|| Civil::from_unix(now.saturating_add(offset)));
                } else if let Some(time) = state.setting.take() {
                    state.offset = time.to_unix().saturating_sub(now);
                }
            }
            REG_SECONDS | REG_MINUTES | REG_HOURS | REG_WEEKDAY | REG_DAY | REG_MONTH
            | REG_YEAR | CENTURY_REGISTER => {
                let now = (self.now)();
                let mut time = state
                    .setting
                    .unwrap_or_else(|| Civil::from_unix(now.saturating_add(state.offset)));
                set_field(&mut time, state.index, i64::from(decode(value, state.register_b)));
                if state.setting.is_some() {
                    state.setting = Some(time);
                } else {
                    state.offset = time.to_unix().saturating_sub(now);
                }
            }
            index => state.storage[usize::from(index & 0x7f)] = value,
        }
    }
}

fn set_field(time: &mut Civil, register: u8, value: i64) {
    match register {
        REG_SECONDS => time.second = value,
        REG_MINUTES => time.minute = value,
        REG_HOURS => time.hour = value,
        REG_DAY => time.day = value,
        REG_MONTH => time.month = value,
        REG_YEAR => time.year = time.year.div_euclid(100) * 100 + value,
        CENTURY_REGISTER => time.year = value * 100 + time.year.rem_euclid(100),
        // The weekday follows from the date.
        _ => {}
    }
}

fn encode(value: u8, register_b: u8) -> u8 {
    if register_b & B_BINARY != 0 { value } else { (value / 10) << 4 | (value % 10) }
}

fn decode(value: u8, register_b: u8) -> u8 {
    if register_b & B_BINARY != 0 { value } else { (value >> 4) * 10 + (value & 0xf) }
}

impl BusDevice for CmosRtc {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let ([byte], PORT_DATA) = (data, offset) {
            *byte = self.read_register(&self.lock());
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let [byte] = *data else { return };
        let mut state = self.lock();
        match offset {
            // Bit 7 gates NMI on a PC and selects nothing here.
            PORT_INDEX => state.index = byte & 0x7f,
            PORT_DATA => self.write_register(&mut state, byte),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2026-11-22 03:04:05 UTC, a Sunday.
    fn fixed() -> i64 {
        1_795_316_645
    }

    fn get(rtc: &CmosRtc, register: u8) -> u8 {
        rtc.write(PORT_INDEX, &[register]);
        let mut byte = [0];
        rtc.read(PORT_DATA, &mut byte);
        byte[0]
    }

    fn set(rtc: &CmosRtc, register: u8, value: u8) {
        rtc.write(PORT_INDEX, &[register]);
        rtc.write(PORT_DATA, &[value]);
    }

    #[test]
    fn time_reads_as_bcd() {
        let rtc = CmosRtc::with_clock(fixed);
        let registers = [
            CENTURY_REGISTER,
            REG_YEAR,
            REG_MONTH,
            REG_DAY,
            REG_HOURS,
            REG_MINUTES,
            REG_SECONDS,
            REG_WEEKDAY,
        ];
        assert_eq!(
            registers.map(|register| get(&rtc, register)),
            [0x20, 0x26, 0x11, 0x22, 0x03, 0x04, 0x05, 1]
        );
    }

    #[test]
    fn calendar_round_trips() {
        for seconds in (-5_000_000_000..10_000_000_000i64).step_by(86_399 * 7) {
            assert_eq!(Civil::from_unix(seconds).to_unix(), seconds);
        }
        let leap = Civil::from_unix(951_782_400);
        assert_eq!((leap.year, leap.month, leap.day), (2000, 2, 29));
    }

    #[test]
    fn setting_takes_effect_when_set_is_cleared() {
        let rtc = CmosRtc::with_clock(fixed);
        set(&rtc, REG_B, B_SET);
        set(&rtc, REG_YEAR, 0x31);
        set(&rtc, REG_HOURS, 0x23);
        set(&rtc, REG_B, 0);
        assert_eq!(
            (get(&rtc, REG_YEAR), get(&rtc, REG_HOURS), get(&rtc, REG_MINUTES)),
            (0x31, 0x23, 0x04)
        );
    }

    #[test]
    fn status_registers_tell_a_valid_idle_clock() {
        let rtc = CmosRtc::with_clock(fixed);
        assert_eq!(get(&rtc, REG_A) & 0x80, 0);
        assert_eq!(get(&rtc, REG_D), D_VALID);
        set(&rtc, REG_B, 0x70);
        assert_eq!(get(&rtc, REG_B), B_24_HOUR);
    }

    #[test]
    fn absurd_values_are_harmless() {
        let rtc = CmosRtc::with_clock(fixed);
        for register in 0..=255 {
            for value in 0..=255 {
                set(&rtc, register, value);
                get(&rtc, register);
            }
        }
    }
}
