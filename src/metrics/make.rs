//! How metrics are made: each is registered at once, so that none is forgotten.

use prometheus::core::Collector;
use prometheus::{
    GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, Result,
};

use super::Latency;

/// Makes metrics. Its errors are mistakes where it is called: a name that is invalid or that another metric has.
#[derive(Default)]
pub(super) struct Make(Registry);

impl Make {
    pub fn register<M: Collector + Clone + 'static>(&self, made: Result<M>) -> Result<M> {
        let metric = made?;
        self.0.register(Box::new(metric.clone()))?;
        Ok(metric)
    }

    pub fn counter(&self, name: &str, help: &str) -> Result<IntCounter> {
        self.register(IntCounter::new(name, help))
    }

    pub fn counters(&self, name: &str, help: &str, labels: &[&str]) -> Result<IntCounterVec> {
        self.register(IntCounterVec::new(Opts::new(name, help), labels))
    }

    pub fn gauge(&self, name: &str, help: &str) -> Result<IntGauge> {
        self.register(IntGauge::new(name, help))
    }

    pub fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> Result<IntGaugeVec> {
        self.register(IntGaugeVec::new(Opts::new(name, help), labels))
    }

    pub fn float_gauges(&self, name: &str, help: &str, labels: &[&str]) -> Result<GaugeVec> {
        self.register(GaugeVec::new(Opts::new(name, help), labels))
    }

    pub fn latency(&self, name: &str, help: &str) -> Result<Latency> {
        self.register(Latency::new(name, help))
    }

    pub fn one_histogram(&self, name: &str, help: &str, buckets: Vec<f64>) -> Result<Histogram> {
        self.register(Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets)))
    }

    pub fn histogram(&self, name: &str, help: &str, labels: &[&str]) -> Result<HistogramVec> {
        // From a minimal call to far beyond the default deadline.
        self.histogram_of(name, help, labels, vec![1e-6, 5e-6, 25e-6, 100e-6, 500e-6, 2.5e-3, 10e-3, 50e-3, 250e-3])
    }

    pub fn histogram_of(&self, name: &str, help: &str, labels: &[&str], buckets: Vec<f64>) -> Result<HistogramVec> {
        self.register(HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets), labels))
    }

    /// Returns what all of them are registered with.
    pub fn done(self) -> Registry {
        self.0
    }
}
