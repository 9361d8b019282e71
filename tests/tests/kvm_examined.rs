//! What `sbctl doctor` finds out about KVM, on whatever /dev/kvm there is.

use kvm_recorder::kvm::examine::{self, Level};
use machine::conformance::Results;
use machine::cpuid::CpuidTable;
use simuboost_tests::oracle::kvm::host;

#[test]
fn small_guests_run_and_tell() {
    let Some(host) = host() else { return };
    for level in Level::BOTH {
        let speed = examine::speed(&host, level).expect("loops run everywhere");
        eprintln!("{level:?}: {speed:.3e} instructions per second");
        assert!(speed > 1e4);
        match examine::results(&host, level) {
            Ok(found) => {
                let native = Results::of_host().expect("a steady host");
                let differing: Vec<_> = native.differing(&found).map(|kind| kind.name).collect();
                eprintln!("{level:?}: differs in {differing:?}");
            }
            Err(error) => eprintln!("{level:?}: {error}"),
        }
    }
    let table = CpuidTable::of_host();
    let differences = examine::cpuid(&host, &table).expect("CPUID runs everywhere");
    eprintln!("{differences:x?}");
    eprintln!("{:?}", examine::holds_writes(&host).expect("a vCPU"));
    let tsc = examine::tsc(&host).expect("RDTSC runs everywhere");
    eprintln!("{tsc:?}");
    assert!(tsc.stood_still <= tsc.tries);
    eprintln!(
        "{:?}",
        examine::branches(&host).expect("loops run everywhere")
    );
}
