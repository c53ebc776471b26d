//! What the host must have: copied instructions and the registers that translated code lives in depend on it.

use crate::error::Error;

/// AT_HWCAP2 bit: the kernel lets programs write the GS base (Documentation/arch/x86/elf_auxvec.rst).
const HWCAP2_FSGSBASE: usize = 1 << 1;

/// Checks the host once for a guest.
///
/// Errors: [`Error::NotSupported`] that says what is missing and what to do.
pub(crate) fn check() -> Result<(), Error> {
    let avx = std::arch::is_x86_feature_detected!("avx");
    let gs_base = rustix::param::linux_hwcap().1 & HWCAP2_FSGSBASE != 0;
    // The system-call seam has room for a status only.
    judge(avx, gs_base).inspect_err(|error| tracing::error!(%error, "This host cannot run guests"))
}

fn judge(avx: bool, gs_base: bool) -> Result<(), Error> {
    if !avx {
        return Err(Error::NotSupported(
            "the host CPU has no AVX, or its kernel or hypervisor hides it: use a host CPU of 2011 or later with AVX \
             enabled",
        ));
    }
    if !gs_base {
        return Err(Error::NotSupported(
            "the host does not let programs set the GS base: it takes a CPU with FSGSBASE and Linux 5.9 or later, \
             booted without `nofsgsbase`",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(avx: bool, gs_base: bool) -> String {
        judge(avx, gs_base).map_or_else(|error| error.to_string(), |()| String::new())
    }

    #[test]
    fn what_is_missing_is_said() {
        assert_eq!(message(true, true), "");
        assert!(message(false, true).contains("AVX"));
        assert!(message(false, false).contains("AVX"));
        assert!(message(true, false).contains("FSGSBASE"));
        assert!(matches!(judge(true, false), Err(Error::NotSupported(_))));
    }
}
