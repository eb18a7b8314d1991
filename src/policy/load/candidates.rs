//! Loads candidates: versions of policies that are on trial beside those that serve. None of them blocks a reload.

use std::path::PathBuf;
use std::sync::Arc;

use super::{Loader, REASON_BYTES_MAX, last_fault};
use crate::config::CandidateMode;
use crate::policy::candidate::{Candidate, Refused, State};
use crate::policy::host::Trial;
use crate::policy::taps::Shadow;
use crate::policy::{LoadError, Policies, Policy, Rejected};
use crate::types::fault::cut;

impl Loader {
    /// Brings the candidates up to date with the configuration and their files. One whose file is refused says why; it affects nobody.
    pub fn renew_candidates(&self, policies: &Policies) {
        let setup = self.setup.load_full();
        let (current, before) = (policies.current(), policies.candidates());
        let wanted = setup.config.policies.iter().filter_map(|(name, policy)| Some((name, policy.candidate.as_ref()?)));
        let mut next = Vec::new();
        for (name, config) in wanted {
            let Some(file) = setup.source.folder().candidate(name) else { continue };
            let found = setup.source.folder().found(name, &file);
            let live = setup.config.policy(name);
            let is_same = |known: &&Arc<Candidate>| {
                let has_config = |policy: &Arc<Policy>| policy.config == live;
                *known.name == **name
                    && known.config == *config
                    && known.digest() == found.digest()
                    && known.loaded.as_ref().is_ok_and(has_config)
            };
            if let Some(known) = before.iter().find(is_same) {
                next.push(known.clone());
                continue;
            }
            let loaded = self.load_found(&setup, &found, Trial::Candidate);
            match &loaded {
                Ok(policy) => tracing::info!(policy = name, version = &*policy.version, mode = config.mode.name(), "candidate loaded"),
                Err(error) => tracing::error!(policy = name, file = ?file, "candidate refused: it {error}"),
            }
            let refused = |error: LoadError| Refused {
                digest: found.digest().map(str::to_owned),
                reason: cut(&error.to_string(), REASON_BYTES_MAX).to_owned(),
            };
            let loaded = loaded.map(Arc::new).map_err(refused);
            if let (Ok(policy), Some(live)) = (&loaded, current.find(name)) {
                policy.learns_from(live);
            }
            if config.mode == CandidateMode::Canary {
                // A counter that begins with its first count has no increase for Prometheus.
                self.metrics.canary_returns.with_label_values(&[name]);
            }
            next.push(Arc::new(Candidate::new(name.as_str().into(), file, config.clone(), loaded)));
        }
        policies.set_candidates(next);
        self.tap_candidates(policies);
    }

    /// Returns where a policy's file is looked for, whether or not the policy that serves was loaded from there.
    pub fn place(&self, name: &str) -> Option<PathBuf> {
        self.setup.load().source.folder().file(name)
    }

    /// Drops a candidate, and returns whether there was one. It is not tried again before its file or its configuration changes.
    pub fn drop_candidate(&self, policies: &Policies, name: &str) -> bool {
        let Some(candidate) = policies.candidate(name) else { return false };
        candidate.end(State::Dropped);
        policies.refresh_canary();
        self.tap_candidates(policies);
        tracing::info!(policy = name, "candidate dropped");
        true
    }

    /// Gives the live policy its events back if a canary's circuit has opened. Returns what was rolled back.
    pub fn return_canary(&self, policies: &Policies) -> Option<Rejected> {
        let canary = policies.canary().filter(|canary| canary.policy.is_circuit_open())?;
        let policy = &canary.policy;
        let times = policy.limits().breaker_faults;
        let reason = format!("was a canary and faulted {times} times in a row{}: the live policy decides again", last_fault(policy));
        if !canary.candidate.end(State::Returned(reason.clone())) {
            return None;
        }
        policies.refresh_canary();
        self.metrics.canary_returns.with_label_values(&[&*policy.name]).inc();
        Some(Rejected::while_serving(policy, reason))
    }

    /// Lets the candidates in the shadow make their share of the calls.
    pub fn tap_candidates(&self, policies: &Policies) {
        let candidates = policies.candidates();
        let shadows = candidates.iter().filter(|candidate| candidate.on_trial(CandidateMode::Shadow).is_some());
        let shadow = |candidate: &Arc<Candidate>| Shadow {
            share: candidate.config.share.get(),
            skipped: candidate.skipped.clone(),
            skipped_total: self.metrics.candidate_skipped.with_label_values(&[&*candidate.name]),
        };
        self.taps.set_shadows(shadows.map(|candidate| (candidate.name.clone(), shadow(candidate))).collect());
    }
}
