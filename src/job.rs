//! The job that this process belongs to: what `mpirun` or `srun` say in the environment, and joining through MPI.

use crate::Outcome;
use framework::error::{Error, Problem, Result};
use framework::ranks::job::Job;
use std::env;
#[cfg(feature = "mpi")]
use {crate::console, framework::ranks::watchdog::Hanging, std::sync::Arc, std::time::Duration};

/// Variables with the number of processes of a job: Open MPI; MPICH and Intel MPI; a step that Slurm's `srun` started.
const SIZES: [&str; 3] = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"];

/// Variables with the index of this process on its machine.
const LOCAL_RANKS: [&str; 3] = ["OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "SLURM_LOCALID"];

/// Variables with the index of this process in its job.
const RANKS: [&str; 3] = ["OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK"];

/// Writes a line to standard error, unless this process is another rank than the first: all ranks get the same signals.
pub fn say(line: &str) {
    if RANKS.into_iter().find_map(number).unwrap_or(0) == 0 {
        crate::console::say(line);
    }
}

fn number(name: &str) -> Option<usize> {
    env::var(name).ok()?.parse().ok()
}

/// Returns the index of this process on its machine, from 0.
pub fn local_rank() -> usize {
    LOCAL_RANKS.into_iter().find_map(number).unwrap_or(0)
}

/// Returns the number of processes that a launcher started together.
fn processes() -> usize {
    SIZES.into_iter().find_map(number).unwrap_or(1)
}

/// Refuses a command that would do the same work in every process of a job.
///
/// # Errors
/// If a launcher started several processes, and the command is not `train`.
pub fn refuse_several(command: &str) -> Outcome {
    match processes() {
        0 | 1 => Ok(()),
        size => {
            let what = format!("{size} processes were started, but only `train` divides its work among processes");
            Err(Error::from(Problem::new(command, what).fix(format!("start one process: unguided {command}"))))
        }
    }
}

/// Joins the job that started this process, with the time that one of its steps may take, in seconds.
///
/// # Errors
/// If several processes were started, but this build has no MPI, or if a limit is given for a single process.
pub fn join(step_timeout: Option<u64>) -> Result<Job> {
    let job = if processes() > 1 { launched(step_timeout)? } else { Job::alone() };
    if job.is_alone() && step_timeout.is_some() {
        let problem = Problem::new("--step-timeout", "the option has no effect: this process is alone");
        return Err(problem.fix("remove the option, or start several ranks with mpirun or srun").into());
    }
    Ok(job)
}

#[cfg(not(feature = "mpi"))]
fn launched(_: Option<u64>) -> Result<Job> {
    let problem = Problem::new("", "a launcher started several processes, but this build has no MPI");
    Err(problem.fix("start one process, or build with --features mpi").into())
}

#[cfg(feature = "mpi")]
fn launched(step_timeout: Option<u64>) -> Result<Job> {
    let Some(mpi) = mpi_ranks::Mpi::join() else {
        return Err(Error::Run("MPI cannot be initialized".to_string()));
    };
    let rank = framework::ranks::collective::Collective::rank(&mpi);
    let unwinding = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        unwinding(panic);
        if !framework::blame::is_caught() {
            console::say(&format!("error: rank {rank} panicked; all ranks end"));
            mpi_ranks::Mpi::abort_all(101);
        }
    }));
    let hanging: Hanging = Arc::new(move |what: &str| {
        console::say(&format!("error: rank {rank}: {what}"));
        mpi_ranks::Mpi::abort_all(1)
    });
    let step_timeout = step_timeout.map(Duration::from_secs);
    Ok(Job { ranks: Arc::new(mpi), step_timeout, hanging })
}

/// Ends all ranks if this one failed, because the others wait for it. Rank 0 ends them at once; another rank first gives
/// rank 0 time to report the same error.
pub fn end_with(job: &Job, done: Outcome) -> Outcome {
    match done {
        Err(error) if !job.is_alone() && !matches!(error, Error::Interrupted) => {
            if !job.is_first() {
                std::thread::sleep(std::time::Duration::from_secs(1));
            }
            crate::console::say(&format!("error: rank {}: {error}", job.ranks.rank()));
            job.ranks.abort(i32::from(error.exit_code()))
        }
        done => done,
    }
}
