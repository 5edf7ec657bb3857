//! The stand-in plugin against the stock plugin's bytes: every scenario is run with the stand-in and, where
//! `AUTOSSM_TEST_PLUGIN` names it, with the stock plugin too; both have to do the same.

#[cfg(test)]
mod fake;
#[cfg(test)]
mod lab;
#[cfg(test)]
mod plugin;
#[cfg(test)]
mod scenarios;
