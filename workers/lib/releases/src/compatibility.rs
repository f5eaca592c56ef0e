//! Whether a machine can run a release: runtime version, operators, memory. Pure. Used to choose sites, and by the site
//! itself before it fetches anything.

use schemas::{FaultKind, FaultNote, MachineRequirements};

/// The newest standard opset that every supported ONNX Runtime has (1.22, with ONNX 1.18: onnxruntime's
/// docs/Versioning.md). A graph with a newer opset needs the runtime version it was tried with, or a later one.
const KNOWN_OPSET: u32 = 23;
/// Operator domains that CPU builds of the ONNX Runtime have.
const KNOWN_DOMAINS: [&str; 4] = ["ai.onnx", "ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc"];
/// A release is loaded beside the one that serves; this factor leaves a margin.
const SPARE_RATIO: f64 = 1.25;

/// What a machine offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineProfile {
    /// Version of its ONNX Runtime, such as `1.22.0`.
    pub runtime: String,
    /// Free memory in MiB; absent where the system does not report it.
    pub memory_free_mib: Option<u64>,
    /// Number of replicas of a model it runs.
    pub replicas: u64,
}

/// Why a machine cannot run a release with these requirements; `None` if it can.
pub fn incompatibility(needs: &MachineRequirements, machine: &MachineProfile) -> Option<FaultNote> {
    if needs.opset > KNOWN_OPSET && version(&machine.runtime) < version(&needs.runtime) {
        let reason = format!(
            "its graph uses opset {}, which ONNX Runtime {} may not have; it was tried with {}",
            needs.opset, machine.runtime, needs.runtime
        );
        let remedy = format!("give the site ONNX Runtime {} or newer", needs.runtime);
        return Some(FaultNote::new("runtime_too_old", reason, remedy));
    }
    if let Some(unknown) = needs.domains.iter().find(|domain| !KNOWN_DOMAINS.contains(&domain.as_str())) {
        let reason = format!("its graph has operators of domain {unknown}, which no standard ONNX Runtime has");
        return Some(FaultNote::new("operator_missing", reason, "export the model with standard operators only"));
    }
    let wanted = (f64::from(needs.memory_mib) * machine.replicas as f64 * SPARE_RATIO) as u64;
    if let Some(free) = machine.memory_free_mib.filter(|free| *free < wanted) {
        let reason = format!("loading it beside the serving release takes {wanted} MiB, but {free} MiB are free");
        let remedy = "free memory at the site, run fewer replicas there (infer.replicas), or use a smaller model";
        return Some(FaultNote::new(FaultKind::MemoryShort, reason, remedy));
    }
    None
}

/// The numbers of a version, for comparison.
fn version(text: &str) -> Vec<u32> {
    text.split(['.', '-', '+']).map_while(|part| part.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn why(needs: MachineRequirements, runtime: &str, free: Option<u64>) -> Option<String> {
        let machine = MachineProfile { runtime: runtime.into(), memory_free_mib: free, replicas: 4 };
        incompatibility(&needs, &machine).map(|fault| fault.kind.to_string())
    }

    #[test]
    fn missing_requirements_are_named() {
        let needs = MachineRequirements { opset: 17, domains: Vec::new(), runtime: "1.31.1".into(), memory_mib: 100 };
        assert_eq!(why(needs.clone(), "1.22.0", Some(501)), None);
        assert_eq!(why(needs.clone(), "1.22.0", None), None);
        assert_eq!(why(needs.clone(), "1.22.0", Some(499)).as_deref(), Some("memory_short"));
        let newer = MachineRequirements { opset: 24, ..needs.clone() };
        assert_eq!(why(newer.clone(), "1.22.0", None).as_deref(), Some("runtime_too_old"));
        assert_eq!(why(newer.clone(), "1.9.0", None).as_deref(), Some("runtime_too_old"), "9 is less than 31");
        assert_eq!(why(newer, "1.31.1", None), None);
        let foreign = MachineRequirements { domains: vec!["com.microsoft".into(), "org.example".into()], ..needs };
        assert_eq!(why(foreign, "1.31.1", None).as_deref(), Some("operator_missing"));
    }
}
